"""Keeps NaNs and infinities within windows, at the cost of computing twice where there are some."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from natjax_kernels.problem import accumulator


def contained(compute, checked: int, static: tuple, *arrays):
    """Returns `compute(contain, *static, *arrays)`, in whose results NaNs and infinities are only where windows let them be.

    That takes longer, on a CPU twice as long, so one CPU first computes without `contain`: results are then NaN in more
    places, never in fewer (of logits below 1e38), and a sum of the first `checked` ones says whether there are any. Both are
    compiled. Other devices always contain: XLA fuses it there, and a batch that is split over devices would have to wait for
    their sums.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return compute(True, *static, *arrays)
    containing = jax.jit(compute, static_argnums=range(1 + len(static)))  # so that layers alike are traced once
    plain = functools.partial(compute, False, *static)

    @jax.custom_jvp
    def run(*arrays):
        results = plain(*arrays)
        # A loop of no turn or one: a conditional would copy the results.
        again = (lambda state: ~state[1]), (lambda _: (containing(True, *static, *arrays), True))
        return jax.lax.while_loop(*again, (results, _all_finite(*results[:checked])))[0]

    # Second derivatives, as a loop has no transpose: those of the plain computation.
    run.defjvp(lambda primals, tangents: (run(*primals), jax.jvp(plain, primals, tangents)[1]))
    return run(*arrays)


@custom_vmap
def _all_finite(*arrays):
    return jnp.isfinite(functools.reduce(jnp.add, (jnp.sum(x, dtype=accumulator(x)) for x in arrays)))


@_all_finite.def_vmap
def _all_finite_of_all(size, mapped, *arrays):
    return _all_finite(*arrays), False  # one answer for all mapped entries, or both ways would be computed for each
