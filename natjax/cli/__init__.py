"""The `natjax` command: one module per subcommand, each with `HELP`, `add_arguments(parser)` and `run(args) -> int`.

Nothing here imports jax, numpy or Pillow before a subcommand runs, so that `natjax --help` answers at once. Results go
to stdout, everything else to stderr. Exit codes: 0 all is well; 1 the command failed, or went on without some of the
images; 2 wrong usage; 75 training was told to stop and has saved its state; 130 interrupted; 141 nobody reads the
output any more.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from natjax._version import __version__
from natjax.cli import (
    bench,
    bench_op,
    classify,
    convert,
    demo,
    detect,
    doctor,
    explore,
    export,
    features,
    info,
    list_models,
    push,
    segment,
    train,
)
from natjax.cli import eval as evaluate
from natjax.cli._devices import explain_no_device
from natjax.cli._output import complain
from natjax.cli._parser import Parser

_COMMANDS = {
    "classify": classify,
    "features": features,
    "segment": segment,
    "detect": detect,
    "explore": explore,
    "info": info,
    "list": list_models,
    "train": train,
    "eval": evaluate,
    "convert": convert,
    "export": export,
    "push": push,
    "demo": demo,
    "bench": bench,
    "bench op": bench_op,
    "doctor": doctor,
}
_EXPECTED = (ValueError, OSError, NotImplementedError, ImportError)  # natjax's own errors are ValueErrors


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: the arguments; `sys.argv[1:]` when None.

    Raises:
        SystemExit: by argparse, after `--help` and `--version` (0) and on wrong usage (2).
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the command
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper):  # class and file names may lie outside of the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:2] == ["bench", "op"]:  # a command of two words; a folder of this name is ./op
        argv[:2] = ["bench op"]
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.refuse_unknown(unknown)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment]
            code = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        complain("interrupted")
        return _ended(130)
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # a traceback is no answer to a typo in a path
        if args.debug or os.environ.get("NATJAX_TRACEBACK") == "1":
            traceback.print_exc()
            return _ended(1)
        no_device = explain_no_device(error)
        message = no_device or str(error) or type(error).__name__
        if not (no_device or isinstance(error, _EXPECTED)):
            message = f"unexpected {type(error).__name__}: {message} (--debug shows where)"
        complain(f"error: {message}")
        return _ended(1)
    return code


def _ended(code: int) -> int:
    """Returns the code of a command that failed. One of several processes ends here: on its usual way out JAX would wait for the
    others, which wait for this one amid a step."""
    jax = sys.modules.get("jax")
    if jax and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="natjax",
        description="Neighborhood Attention Transformers (NAT, DiNAT) in JAX: classify and segment images, detect objects, "
        "extract features, look at models, train, convert and share checkpoints.",
    )
    parser.add_argument("--version", action="version", version=f"natjax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparser.set_defaults(run=command.run, parser=subparser)
    return parser


def _show_warning(message: Warning | str, *_: object) -> None:
    complain(f"warning: {message}")
