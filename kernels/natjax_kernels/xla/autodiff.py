"""The tiles of `xla` with JAX's own derivatives: forward mode, any order, and `vmap` of all.

`jax.jvp`, `jax.linearize`, `jax.hessian` and forward over reverse need a program that JAX can differentiate by itself; a function
with a backward pass of its own, as the other implementations are, has reverse mode only. What it costs: the backward pass
scatters gradients of haloed keys, and NaNs spread over tiles instead of windows.
"""

from __future__ import annotations

from natjax_kernels.problem import Problem
from natjax_kernels.sharding import spec_of, within_auto_axes
from natjax_kernels.xla.op import attend_plainly


def attend(problem: Problem):
    """Computes output and log-sum-exp; see `natjax_kernels.problem`."""
    spec = spec_of(problem.query)
    return within_auto_axes(attend_plainly, problem, specs=(spec, spec[:-1]))
