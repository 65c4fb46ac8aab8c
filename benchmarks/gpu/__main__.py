"""Benchmarks the fused kernels on this machine's GPU, in at most 8 minutes.

Sections run one after another, each in a process of its own, and write gpu_<section>.json into --out. gpu_summary.json sets what
was measured on one kind of device side by side. --rehearse runs all of it in small on a CPU, in some 2 minutes, where times mean
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.summary import summarise
from benchmarks.harness import GRACE, RESULTS, Report, TimeUp, environment, interrupted, keep, read, run_section, write
from benchmarks.provenance import provenance

ALL = 470  # seconds, of all sections together
# Seconds of budget, most telling first; peers, which are slow to compile, have what the others leave. What would start later is
# skipped, what runs half of GRACE later is interrupted, and a section that is there after all of GRACE is ended.
SECTIONS = {"numerics": 70, "op": 100, "models": 110, "scaling": 30, "peers": ALL}
_KERNELS = ("triton", "jax_triton", "absl")
NEEDS = {
    "numerics": _KERNELS,
    "op": _KERNELS,
    "models": (*_KERNELS, "flax", "optax"),
    "scaling": _KERNELS,
    "peers": ("torch",),
}
# What a part of a section needs, without which its rows have errors.
PARTLY = {"models": ("training steps", ("safetensors", "PIL")), "peers": ("Swin and ConvNeXt", ("transformers",))}


def main() -> int:
    """Runs the sections; returns 0 where all were completed, peers that are not there aside."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder (default: benchmarks/results; rehearsals: a temporary one)"
    )
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument(
        "--cases", nargs="+", default=[], help="parts of names, such as 'level 1' or nat_tiny (default: all)"
    )
    parser.add_argument("--seconds", type=float, help="budget of every section, whatever all take together")
    parser.add_argument("--rehearse", action="store_true", help="all of it in small, on a CPU")
    parser.add_argument("--threads", type=int, default=8, help="that compile side by side")
    parser.add_argument(
        "--inside", action="store_true", help=argparse.SUPPRESS
    )  # run a section in this process, into --out
    args = parser.parse_args()
    if args.inside:
        inside(args.sections[0], args.out, started + args.seconds, args)
        os._exit(0)  # compilers that time was up for would be waited for
    out = (args.out or (pathlib.Path(tempfile.mkdtemp()) if args.rehearse else RESULTS)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    sections = [section for section in SECTIONS if section in args.sections]
    reasons = lacking(sections, args.rehearse)
    if reasons:
        print("Some packages are missing (benchmarks/README.md says how to bring them):")
        print("\n".join(f"  {section} {reason}" for section, reason in reasons.items()), flush=True)
    statuses = {}
    for section in sections:
        path = out / f"gpu_{section}.json"
        if reasons.get(section, "").startswith("skipped"):
            content = {"section": section, "status": "skipped", "reason": reasons[section], "rows": []}
        else:
            seconds = args.seconds or min(SECTIONS[section], started + ALL - GRACE - time.monotonic())
            partial = path.with_suffix(".partial.json")  # what is left of a run that was ended from outside
            command = [sys.executable, "-m", "benchmarks.gpu", "--inside", "--sections", section, "--out", str(partial)]
            command += ["--seconds", str(seconds), "--threads", str(args.threads), *["--rehearse"] * args.rehearse]
            command += ["--cases", *args.cases] * bool(args.cases)
            content = run_section(partial, section, command, seconds + GRACE, variables(section, args.rehearse))
        statuses[section] = content["status"]
        before = read(path)
        kept = keep(before, content)
        write(path, kept)
        print(f"{section}: {statuses[section]}{'; results of before stay' * (kept is before)}", flush=True)
    summary, text = summarise({section: read(out / f"gpu_{section}.json") for section in SECTIONS})
    write(out / "gpu_summary.json", summary | {"sections": statuses, "rehearsal": args.rehearse})
    print(f"{text}\nResults are in {out}.")
    done = ({"complete", "skipped"} if section == "peers" else {"complete"} for section in statuses)
    return 0 if all(status in fine for status, fine in zip(statuses.values(), done, strict=True)) else 1


def lacking(sections: Iterable[str], rehearse: bool) -> dict[str, str]:
    """Returns what sections go without, or why they are skipped, for lack of packages; rehearsals launch nothing on a GPU."""
    found = {}
    for section in sections:
        needed = [name for name in NEEDS[section] if not (rehearse and name in ("jax_triton", "absl"))]
        if missing := [name for name in needed if not importlib.util.find_spec(name)]:
            found[section] = f"skipped: no {', '.join(missing)}"
            continue
        what, names = PARTLY.get(section, ("", ()))
        if missing := [name for name in names if not importlib.util.find_spec(name)]:
            found[section] = f"without {what}: no {', '.join(missing)}"
    return found


def inside(section: str, path: pathlib.Path, deadline: float, args: argparse.Namespace) -> None:
    """Runs a section in this process, whose start and imports are in its time."""
    from benchmarks.gpu.cases import Options

    module = importlib.import_module(f"benchmarks.gpu.{'op' if section == 'scaling' else section}")
    where = {} if args.rehearse else gpu(section)
    origin = provenance(rehearsal=args.rehearse, **where, **({"cases": args.cases} if args.cases else {}))
    report = Report(path, section, origin, deadline - time.monotonic())
    options = Options(args.rehearse, min(args.threads, 2) if args.rehearse else args.threads, args.cases)
    with contextlib.suppress(TimeUp), interrupted(deadline + GRACE / 2 - time.monotonic()):
        (module.measure_scaling if section == "scaling" else module.measure)(report, options)
    if not report.content["rows"] or all("error" in row for row in report.content["rows"]):
        raise SystemExit("Nothing could be measured; the rows say why.")


def gpu(section: str) -> dict[str, Any]:
    """Returns what provenance, which asks JAX, would not know of this section's GPU; ends where there is none."""
    if section == "peers":
        import torch

        if torch.cuda.is_available():
            return {"device": torch.cuda.get_device_name(), "devices": torch.cuda.device_count()}
    else:
        import jax

        if jax.default_backend() == "gpu":
            return {}
    raise SystemExit("This needs a GPU, and found none. --rehearse runs on a CPU.")


def variables(section: str, rehearse: bool) -> dict[str, str]:
    """Returns the environment of a section's process. PyTorch's GPU is PyTorch's alone: its cuDNN is not JAX's."""
    interpret = {"TRITON_INTERPRET": "1"} if rehearse and section == "numerics" else {}
    return environment(**interpret, **({"JAX_PLATFORMS": "cpu"} if rehearse or section == "peers" else {}))


if __name__ == "__main__":
    raise SystemExit(main())
