"""Compiled programs, and how they are timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

_LEAST, _MOST = 5, 1000  # runs that are timed
_ROUNDS = 3  # of programs that are timed in turn


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        run: runs it on a batch and returns when that is done.
        compile_seconds: for tracing and compiling it.
        memory_bytes: of its arguments, results and temporaries, where the compiler says.
        calls: of what is measured in a run.
    """

    run: Callable[[], Any]
    compile_seconds: float
    memory_bytes: int | None
    calls: int = 1


def compiled(jitted: Any, *arguments: Any) -> tuple[Any, float]:
    """Returns the compiled program and the seconds for tracing and compiling it."""
    started = time.perf_counter()
    program = jitted.lower(*arguments).compile()
    return program, time.perf_counter() - started


def memory(program: Any) -> int | None:
    """Returns the bytes of a program's arguments, results and temporaries; None where the compiler does not say."""
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return total - sizes.alias_size_in_bytes


def measure(
    program: Program, seconds: float, progress: Callable[[int, int], None] | None = None, *, least: int = _LEAST
) -> list[float]:
    """Returns the seconds that calls take, run by run, for about so many seconds: up to 1000 runs, after two others.

    Args:
        program: what to run.
        seconds: to go on for.
        progress: is told runs done and their number in all.
        least: runs, however long they take.
    """
    program.run()
    started = time.perf_counter()
    program.run()
    count = round(seconds / max(time.perf_counter() - started, 1e-9))
    count = max(least, min(_MOST, count))
    times = []
    for i in range(count):
        started = time.perf_counter()
        program.run()
        times.append((time.perf_counter() - started) / program.calls)
        if progress:
            progress(i + 1, count)
    return times


def in_turn(
    programs: Mapping[str, Program], seconds: float, progress: Callable[[int, int], None] | None = None
) -> dict[str, list[float]]:
    """Measures several programs, A B C A B C A B C: what slows the machine for a while slows all of them.

    Args:
        programs: by name.
        seconds: to go on for, shared by all; each is run nine times, however long that takes.
        progress: is told how many of the turns are over, and their number.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    turns = [name for _ in range(_ROUNDS) for name in programs]
    for i, name in enumerate(turns):
        times[name] += measure(programs[name], seconds / len(turns), least=1)
        if progress:
            progress(i + 1, len(turns))
    return times
