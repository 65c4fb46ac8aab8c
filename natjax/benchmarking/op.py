"""Programs of the op on a problem of any shape, and of what it is compared with: dense attention, copies and matrix products.

Inputs are noise, in as many sets as the last-level cache does not hold: programs take them in turn, and read memory.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natjax.benchmarking.costs import options
from natjax.benchmarking.programs import Program, compiled, memory
from natjax.nn.xla import compiler_options
from natjax_kernels import neighborhood_attention
from natjax_kernels.problem import Problem

_ROTATED_BYTES, _MOST_SETS = 256e6, 8  # of inputs in turn
_FLIGHT, _MOST_IN_FLIGHT = 0.01, 8  # seconds of calls that are in flight together on an accelerator, and how many
_COPIED = 2**26  # float32
_SIDES = {"cpu": 1024}  # of the matrices that are multiplied; elsewhere:
_SIDE = 8192
_SCORE_ARRAYS = {
    False: 3,
    True: 5,
}  # as large as dense attention's scores, at a time; by whether there is a backward pass


def attention(problem: Problem, implementation: str, *, backward: bool = False) -> Program:
    """Compiles the op, with `backward` its output and the gradients of query, key, value and rpb.

    Raises:
        MemoryError: `implementation` is "reference", whose scores do not fit into memory.
    """
    if implementation == "reference" and (reason := why_not_dense(problem, backward=backward)):
        raise MemoryError(reason)  # before the machine runs out of it
    return _timed(call(problem, implementation), (*_tokens(problem), problem.rpb), backward)


def call(problem: Problem, implementation: str) -> Callable:
    """Returns the op as a function of the problem's query, key, value and rpb."""

    def op(query, key, value, rpb):
        return neighborhood_attention(query, key, value, rpb=rpb, **options(problem), implementation=implementation)

    return op


def dense(problem: Problem, *, backward: bool = False) -> Program:
    """Compiles `jax.nn.dot_product_attention` of every token to all others, without a bias; see `attention`."""

    def op(query, key, value):
        tokens = [x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in (query, key, value)]
        out = jax.nn.dot_product_attention(*tokens, scale=problem.logits.scale)
        return out.reshape(*query.shape[:-1], value.shape[-1])

    return _timed(op, _tokens(problem), backward)


def why_not_dense(problem: Problem, *, backward: bool = False) -> str | None:
    """Returns why dense attention is not measured, where its scores do not fit into memory."""
    one = problem.accumulator.itemsize * problem.batch * problem.heads * problem.tokens**2
    free = _free_bytes()
    if _SCORE_ARRAYS[backward] * one <= free:
        return None
    return f"its scores take {one / 1e9:,.1f} GB, several times, and {free / 1e9:,.1f} GB of memory are free"


def copying() -> tuple[Program, int]:
    """Compiles a program that reads and writes an array in place, and returns it with the bytes that a call moves."""
    array = jnp.zeros(_COPIED, jnp.float32)
    nbytes = 2 * array.nbytes
    program, seconds = compiled(jax.jit(lambda x, y: x + y, donate_argnums=0), array, jnp.float32(1))

    def run() -> None:
        nonlocal array
        array = jax.block_until_ready(program(array, jnp.float32(1)))

    return Program(run, seconds, memory(program)), nbytes


def multiplying(dtype: str) -> tuple[Program, int]:
    """Compiles a product of two large matrices, and returns it with its floating point operations."""
    side = _SIDES.get(jax.default_backend(), _SIDE)
    a, b = (jax.device_put(_noise((side, side), dtype)) for _ in range(2))
    program, seconds = compiled(jax.jit(jnp.matmul), a, b)
    return _in_flight(program, [(a, b)], seconds), 2 * side**3


def _tokens(problem: Problem) -> tuple[Any, Any, Any]:
    return problem.query, problem.key, problem.value


def _timed(op: Callable, arrays: tuple, backward: bool) -> Program:
    """Compiles a function of arrays like these, and its backward pass."""

    def both(arrays, d_out):
        out, pull = jax.vjp(op, *arrays)
        return out, pull(d_out)

    d_out = jax.eval_shape(op, *arrays)
    inputs = (arrays, d_out) if backward else (arrays,)
    # Compiled before inputs are made: what cannot be, fails sooner.
    program, seconds = compiled(
        jax.jit(both if backward else lambda x: op(*x), compiler_options=compiler_options()), *inputs
    )
    nbytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(inputs))
    count = max(1, min(_MOST_SETS, math.ceil(_ROTATED_BYTES / nbytes)))
    first = jax.tree.map(lambda x: jax.device_put(_noise(x.shape, x.dtype)), inputs)
    sets = [first, *(jax.tree.map(jnp.copy, first) for _ in range(count - 1))]
    return _in_flight(program, sets, seconds)


def _in_flight(program: Any, sets: list[tuple], compile_seconds: float) -> Program:
    """Returns a program that takes sets of inputs in turn.

    An accelerator returns before its work is done, so that several calls are in flight, and one wait ends a run: what a launch
    from Python takes is hidden, as it is within a model. A CPU would run them side by side.
    """
    turns = itertools.cycle(sets)

    def run(calls: int) -> Any:
        out = None
        for _ in range(calls):
            out = program(*next(turns))
        return jax.block_until_ready(out)

    calls = 1
    if jax.default_backend() != "cpu":
        run(1)  # assembles the fused kernels
        started = time.perf_counter()
        run(1)
        calls = max(1, min(_MOST_IN_FLIGHT, round(_FLIGHT / (time.perf_counter() - started))))
    return Program(lambda: run(calls), compile_seconds, memory(program), calls)


def _noise(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)


def _free_bytes() -> int:
    """Returns the bytes of memory that the device has left, or the machine of a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on macOS and Windows
        return 8 * 2**30
