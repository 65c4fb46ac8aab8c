"""Arguments that several commands take, and their types. What these refuse is wrong usage, which argparse says in one line."""

from __future__ import annotations

import argparse

_DTYPES = ("float32", "bfloat16", "float16")
_LARGEST_SIDE = 2**16  # pixels: of larger images no device holds the features


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `natjax_train.mesh.start_processes` takes: `coordinator`, `processes` and `process`."""
    group = parser.add_argument_group("several processes", "The same command in each; under SLURM nothing is needed.")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the dtype of the computation."""
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the computation (default: float32)")


def positive_int(text: str) -> int:
    """Returns an integer of at least 1."""
    value = _int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {text!r}")
    return value


def not_negative_int(text: str) -> int:
    """Returns an integer of at least 0."""
    value = _int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0; got {text!r}")
    return value


def image_side(text: str) -> int:
    """Returns the side of a square image in pixels."""
    side = _int(text)
    if not 1 <= side <= _LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"must be 1 to {_LARGEST_SIDE} pixels; got {text!r}")
    return side


def image_size(text: str) -> tuple[int, int]:
    """Returns height and width of an image in pixels, from N or HEIGHTxWIDTH."""
    sides = text.lower().split("x")
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"must be a number of pixels or HEIGHTxWIDTH; got {text!r}")
    return image_side(sides[0]), image_side(sides[-1])


def fraction(text: str) -> float:
    """Returns a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1; got {text!r}")
    return value


def positive_seconds(text: str) -> float:
    """Returns a time of more than nothing."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be seconds above 0; got {text!r}")
    return value


def token_shape(text: str) -> tuple[int, ...]:
    """Returns the shape of a problem of the op, [B, *spatial, N, D]."""
    sizes = tuple(map(_int, text.split(",")))
    if not 4 <= len(sizes) <= 6 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"must be batch, 1 to 3 sides of the map, heads, channels of a head, as in 1,56,56,2,32; got {text!r}"
        )
    return sizes


def int_per_axis(text: str) -> int | tuple[int, ...]:
    """Returns an integer, or those of several axes."""
    try:
        values = tuple(map(int, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be an integer or one per axis, as in 3,7; got {text!r}") from error
    return values if len(values) > 1 else values[0]


def flag_per_axis(text: str) -> bool | tuple[bool, ...]:
    """Returns a flag, or those of several axes."""
    values = text.split(",")
    if not set(values) <= {"0", "1"}:
        raise argparse.ArgumentTypeError(f"must be 0 or 1, or one per axis, as in 1,0; got {text!r}")
    flags = tuple(value == "1" for value in values)
    return flags if len(flags) > 1 else flags[0]


def capability(text: str) -> int:
    """Returns a compute capability, times ten."""
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and len(minor) == 1 and minor.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be a compute capability, as in 9.0; got {text!r}")
    return 10 * int(major) + int(minor)


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # argparse would name the function, which says nothing to a user
        return -1
