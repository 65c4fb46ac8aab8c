"""What is said of tensors that do not fit a model."""

from __future__ import annotations

import difflib

from natjax_convert.pieces import ParameterPath

_REPORTED = 12  # problems spelled out in an error; the rest is counted


def misfit(problems: list[str], left_over: list[str], about: str = "") -> str:
    """Returns a message with every problem, up to a number, and the nearest name of those left over beside it."""
    candidates = left_over[:200]  # difflib is slow
    for i, problem in enumerate(problems[:_REPORTED]):
        if near := difflib.get_close_matches(problem.removesuffix(": missing"), candidates, n=1, cutoff=0.8):
            problems[i] = f"{problem} (is it {shown(near[0])}?)"
    lines = problems + [f"{shown(name)}: not part of the model" for name in left_over[:_REPORTED]]
    count = len(problems) + len(left_over)
    more = f"\n  ... and {count - _REPORTED} more" if count > _REPORTED else ""
    return (
        f"The checkpoint does not fit the model ({len(problems)} tensors missing or of another shape or dtype, "
        f"{len(left_over)} left over).{about}\n  " + "\n  ".join(lines[:_REPORTED]) + more
    )


def shown(name: str) -> str:
    """Returns a tensor's name as messages have it."""
    return name if name.isprintable() and len(name) < 200 else repr(name[:200])


def shown_path(path: ParameterPath) -> str:
    """Returns a parameter's path as messages have it."""
    return "/".join(map(str, path))
