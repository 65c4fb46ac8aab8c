"""One fused kernel of a call at a time: the op's own, where what it needs is made before and nobody asks for the rest.

A program runs the kernel on several sets of inputs with one bias, so that all of them share the table that XLA makes of it, and
the L2 cache has no set when its turn comes. `bwd_dkv` reads what `bwd_dq` writes, so both are in its program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.calls import arguments, fresh_key, op, rotation
from benchmarks.timing import in_flight
from natjax_kernels.cases import Case
from natjax_kernels.fused import configurations
from natjax_kernels.fused.configurations import Config, override
from natjax_kernels.triton.launch import capability

TOLERANCE = {"float32": 1e-4}  # of the largest error; other dtypes have 3e-2
TENSORS = {"fwd": 4, "bwd_dq": 6, "bwd_dkv": 6}  # like the query, that a kernel reads and writes


class Alone:
    """The inputs of a call for each of its kernels, and what `xla` computes from the first set of them.

    Attributes:
        case: the call.
        dtype: of its inputs.
    """

    def __init__(self, case: Case, dtype: str):
        self.case, self.dtype = case, dtype
        self._sets = arguments(case, fresh_key()[0], 1 if case.batch == 1 else rotation(case, dtype, 4), dtype)
        *_, self._rpb, _ = self._sets[0]
        forward = jax.jit(lambda *primals: jax.vjp(op(case, "forward", "triton"), *primals)[1])
        self._pulls = [(forward(*tokens, self._rpb), d_out) for *tokens, _, d_out in self._sets]
        expected = jax.jit(op(case, "both", "xla"))(*self._sets[0])
        self._expected = {kernel: _results(kernel, expected) for kernel in TENSORS}
        for results in (*self._expected.values(), [expected[1]]):
            _largest_error(results, results)  # compiles it

    def compile(self, kernel: str, config: Config, *, bias: bool = True) -> Callable[[], list[Any]]:
        """Returns a run of a kernel in a configuration on all sets of inputs, of which there was one: it assembles the kernel.

        `bias` asks for the bias's gradient, too.
        """
        inputs, run = self._sets if kernel == "fwd" else self._pulls, single(self.case, kernel, bias)
        with override(tuned(self.case, self.dtype, kernel), config):
            program = jax.jit(run).lower(inputs, self._rpb).compile()
        jax.block_until_ready(program(inputs, self._rpb))
        return functools.partial(program, inputs, self._rpb)

    def error(self, kernel: str, run: Callable[[], list[Any]]) -> float:
        """Returns the largest error beside `xla`, relative to the largest entry of a result (at least 1).

        Raises:
            ArithmeticError: it is more than rounding.
        """
        results = run()[0]
        error = float(_largest_error(results, self._expected[kernel][: len(results)]))
        if error > TOLERANCE.get(self.dtype, 3e-2):
            raise ArithmeticError(f"its results are off by {error:.1e}")
        return error

    def times(self, run: Callable[[], list[Any]], **limits: Any) -> list[float]:
        """Returns the seconds of a run on one set of inputs, sample by sample."""
        return in_flight(run, jax.block_until_ready, calls=len(self._sets), **limits)


def single(case: Case, kernel: str, bias: bool = True) -> Callable:
    """Returns a function of sets of inputs and one bias that asks for the results of a kernel alone.

    A set is query, key, value and two more for `fwd`, and what `jax.vjp` returns and an output gradient for the others.
    """

    def run(inputs, rpb):
        if kernel == "fwd":
            return [[op(case, "forward", "triton")(*tokens, rpb)] for *tokens, _, _ in inputs]
        shared = functools.partial(jax.tree.map, lambda x: rpb if rpb is not None and x.shape == rpb.shape else x)
        return [_results(kernel, (None, *shared(pull)(d_out)), bias) for pull, d_out in inputs]

    return run


def tuned(case: Case, dtype: str, kernel: str) -> configurations.Case:
    """Returns what a configuration of a kernel of a call is for."""
    return configurations.Case(kernel, case.spatial, case.window, case.channels, dtype, case.bias, capability())


def _results(kernel: str, results: tuple[Any, ...], bias: bool = True) -> list[Any]:
    """Returns those of a kernel, of the output and the gradients of query, key, value and bias."""
    out, d_query, d_key, d_value, d_rpb = results
    return {"fwd": [out], "bwd_dq": [d_query, d_rpb][: 1 + bias], "bwd_dkv": [d_key, d_value]}[kernel]


@jax.jit
def _largest_error(got: list[Any], right: list[Any]) -> jax.Array:
    def error(got, right):
        right = right.astype(jnp.float32)
        off = jnp.abs(got.astype(jnp.float32) - right)
        off = jnp.where(jnp.isnan(off), jnp.inf, off)  # which not every device's maximum keeps
        return off.max() / jnp.maximum(1, jnp.abs(right).max())

    return jnp.stack(jax.tree.leaves(jax.tree.map(error, got, right))).max()
