"""`natjax train`: trains a model by a recipe, on one device or many, and resumes interrupted runs."""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from natjax import run_files
from natjax.cli._arguments import add_process_arguments
from natjax.cli._memory import explain_out_of_memory
from natjax.cli._output import complain
from natjax.errors import install_line
from natjax_train.fields import field_types, metavar
from natjax_train.recipe import IMAGE_FIELDS, Recipe, field_help, is_same_model, override
from natjax_train.recipes import RECIPES, find_recipe

HELP = "train or fine-tune a model"
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved, start again with --resume
EXIT_INTERRUPTED = 130  # as shells say of Ctrl-C; saved as well
_TOO_LARGE = (
    "A step does not fit into a device's memory. A smaller batch_size ({recipe.batch_size}) needs less; so do, with the same "
    "batch, a larger accumulate ({recipe.accumulate}), --remat and --dtype bfloat16, or more devices in the mesh."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments: a few of its own, and every field of a recipe."""
    parser.add_argument("--recipe", metavar="NAME", help=f"a recipe's JSON file, or one of {', '.join(RECIPES)}")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with train/ and val/, or 'digits'; for segmentation one with images/ and masks/, for detection "
        "one with COCO's annotations",
    )
    parser.add_argument("--out", required=True, metavar="RUN_DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="resume the run in RUN_DIR; start where there is none")
    add_process_arguments(parser)
    fields = parser.add_argument_group(
        "recipe", "Each of these overrides a field of the recipe; --no-FLAG is --FLAG false."
    )
    kinds = field_types(Recipe)
    for name, text in field_help().items():
        options: dict[str, Any] = {"dest": f"recipe_{name}", "metavar": metavar(kinds[name])}
        is_flag = kinds[name] in (bool, bool | None)  # --remat, --remat true; --no-remat, --remat false
        if is_flag:
            options |= {"nargs": "?", "const": "true"}
        fields.add_argument(f"--{name.replace('_', '-')}", **options, help=text.replace("%", "%%"))
        if "_" in name:  # as the field is called
            fields.add_argument(f"--{name}", **options, help=argparse.SUPPRESS)
        if is_flag:
            no = dict.fromkeys((f"--no-{name.replace('_', '-')}", f"--no-{name}"))
            fields.add_argument(*no, dest=f"recipe_{name}", action="store_const", const="false", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Trains; returns 75 where SIGTERM ended the run early but safely, 130 where Ctrl-C did."""
    recipe = _recipe(args)

    from natjax_train import mesh

    mesh.start_processes(args.coordinator, args.processes, args.process)  # before anything asks for devices
    try:
        from natjax_train import loop
    except ImportError as error:
        raise ImportError(f"Training needs more packages ({error}): {install_line('train')}.") from error

    def started(recipe: Recipe) -> None:
        print(_on_one_line(recipe.to_json()), flush=True)  # JSON escapes what could steer a terminal

    try:
        with explain_out_of_memory(_TOO_LARGE.format(recipe=recipe)):
            loop.train(recipe, args.data, args.out, resume=args.resume, report=complain, started=started)
    except loop.PreemptedError as stopped:
        complain(str(stopped))
        return EXIT_PREEMPTED if stopped.signal == signal.SIGTERM else EXIT_INTERRUPTED
    return 0


def _on_one_line(text: str) -> str:
    """Returns a JSON document in which every list of numbers or names has a line of its own, instead of one per entry."""
    return re.sub(r"\[\n([^][{}]*?)\n *\]", lambda match: f"[{' '.join(match[1].split())}]", text)


def _recipe(args: argparse.Namespace) -> Recipe:
    """Returns the recipe with what the flags override: the run's own where one is resumed."""
    texts = {name: getattr(args, f"recipe_{name}") for name in field_help()}
    changes = {name: text for name, text in texts.items() if text is not None}
    named = None
    if args.recipe:
        found = find_recipe(args.recipe)
        named = override(found, changes)
        for name, what in (("warmup_epochs", "warm-up shortened"), ("milestones", "milestones moved")):
            before, now = getattr(found, name), getattr(named, name)
            if before != now and name not in changes:
                complain(
                    f"{what} from {_numbers(before)} to {_numbers(now)} epochs, the same part of a run of {named.epochs:g} "
                    f"(--{name.replace('_', '-')} says otherwise)"
                )
    saved = Path(args.out) / run_files.RECIPE
    if not (args.resume and saved.is_file()):
        if named is None:
            raise ValueError(f"--recipe is needed: a JSON file, or one of {', '.join(RECIPES)}.")
        return named
    recipe = override(find_recipe(str(saved)), changes)
    differing = ", ".join(name for name in field_help() if named and _differs(name, named, recipe))
    if differing:
        raise ValueError(
            f"The run goes on by {saved}, which differs from --recipe {args.recipe} in {differing}: leave --recipe out, or "
            "choose another folder for another run."
        )
    return recipe


def _numbers(value: float | Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in (value if isinstance(value, Sequence) else (value,)))


def _differs(name: str, named: Recipe, saved: Recipe) -> bool:
    """Returns whether a field of a recipe is not that of the run; what it leaves open, the run has decided."""
    asked, begun = getattr(named, name), getattr(saved, name)
    if name == "model":
        return not is_same_model(asked, begun)
    return asked != begun and not (name in IMAGE_FIELDS and asked is None)
