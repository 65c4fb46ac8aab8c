"""Attention around a ring of devices, for windows whose halos would be more than all other parts (`natjax_kernels.split`).

The devices pass keys and values on, and each attends to one part at a time; the results are merged by their log-sum-exps, as Ring
Attention does (arXiv 2310.01889). The backward pass goes around once more, with the gradients of the parts, and keeps no part:
memory does not grow with the map.

Letters: B batch, N heads, D channels of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from natjax_kernels.merge import merge_attentions
from natjax_kernels.problem import Problem

_FLOATS = "query", "key", "value", "rpb", "additional_keys", "additional_values"
_OTHERS = "key_mask", "sizes", "places"
_ARRAYS = "key", "value", "key_mask"
_PASSED_ON = *_ARRAYS, "places"


@dataclasses.dataclass(frozen=True)
class Ring:
    """The devices along which one axis of a map is split.

    Attributes:
        axis: which spatial axis it is.
        names: its axes of the mesh.
        parts: devices.
        offsets: of every step's part from a device's own, in parts; one less in each.
    """

    axis: int
    names: str | tuple[str, ...]
    parts: int
    offsets: range

    def attend(self, attend: Callable, problem: Problem):
        """Computes output and log-sum-exp; to be called within `jax.shard_map`.

        Args:
            attend: of an implementation.
            problem: with the device's own part, and the place of the first step.
        """

        @jax.custom_vjp
        def around(floats, others):
            out, lse = self._forward(attend, dataclasses.replace(problem, **floats, **others))
            return out.astype(problem.dtype), lse

        def forward(floats, others):
            out, lse = self._forward(attend, dataclasses.replace(problem, **floats, **others))
            return (out.astype(problem.dtype), lse), (floats, others, out, lse)

        def backward(residuals, cotangents):
            floats, others, *results = residuals
            of_device = dataclasses.replace(problem, **floats, **others)
            return self._backward(attend, of_device, *results, *cotangents), None

        around.defvjp(forward, backward)
        return around(_fields(problem, _FLOATS), _fields(problem, _OTHERS))

    def _forward(self, attend: Callable, problem: Problem):
        """Returns output and log-sum-exp in the accumulator's dtype."""
        problem = self._first(problem)
        coming = self._next(_fields(problem, _PASSED_ON))
        out, lse = attend(problem)

        def step(carry, is_last):
            out, lse, part = carry
            coming = None if is_last else self._next(part)  # on its way while the device attends to the part at hand
            of_part, its_lse = attend(_at_part(problem, part))
            return *merge_attentions([out, of_part.astype(lse.dtype)], [lse, its_lse]), coming

        return self._around(step, (out.astype(lse.dtype), lse, coming))[:2]

    def _backward(self, attend: Callable, problem: Problem, out, lse, d_out, d_lse) -> dict[str, Any]:
        """Returns the gradients of `_FLOATS`."""

        def gradients(problem: Problem):
            def of_part(floats):
                return attend(dataclasses.replace(problem, **floats))

            (part, its_lse), pull = jax.vjp(of_part, _fields(problem, _FLOATS))
            share = jnp.where(lse > -jnp.inf, jnp.exp(its_lse - lse), 0)  # of the part in the whole softmax
            d_part = share[..., None] * d_out.astype(lse.dtype)
            d_its_lse = jnp.sum(d_part * (part.astype(lse.dtype) - out), axis=-1) + share * d_lse
            return jax.tree.map(lambda x: x.astype(lse.dtype), pull((d_part.astype(part.dtype), d_its_lse))[0])

        def step(carry, is_last):
            part, of_part, others = carry
            coming, of_part = None if is_last else self._next(part), self._get(of_part, -1)
            found = gradients(_at_part(problem, part))
            sums = (jax.tree.map(jnp.add, x, {k: found[k] for k in x}) for x in (of_part, others))
            return coming, *sums

        problem = self._first(problem)
        coming = self._next(_fields(problem, _PASSED_ON))
        first = gradients(problem)
        of_part, others = ({k: first[k] for k in names} for names in (("key", "value"), ("query", "rpb")))
        _, of_part, others = self._around(step, (coming, of_part, others))
        found = first | self._get(of_part, -self.offsets[-1]) | others  # the gradients of the own part are home now
        return jax.tree.map(lambda d, x: d.astype(x.dtype), found, _fields(problem, _FLOATS))

    def _around(self, step: Callable, carry: Any) -> Any:
        """Runs `step(carry, is_last) -> carry` for all parts but the first one."""
        carry, _ = jax.lax.scan(lambda carry, _: (step(carry, False), None), carry, length=len(self.offsets) - 2)
        return step(carry, True)

    def _first(self, problem: Problem) -> Problem:
        """Returns the problem of the first step."""
        return dataclasses.replace(problem, **self._get(_fields(problem, _ARRAYS), self.offsets[0]))

    def _next(self, part: dict[str, Any]) -> dict[str, Any]:
        """Returns what is passed on of the next step."""
        places = part["places"].at[self.axis].add(self.parts)
        return self._get({name: part[name] for name in _ARRAYS}, -1) | {"places": places}

    def _get(self, arrays: dict[str, Any], offset: int) -> dict[str, Any]:
        """Returns the arrays of the device at an offset from this one."""
        pairs = [((device + offset) % self.parts, device) for device in range(self.parts)]
        if offset % self.parts == 0:
            return arrays
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.names, pairs), arrays)


def _fields(problem: Problem, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in names}


def _at_part(problem: Problem, part: dict[str, Any]) -> Problem:
    """Returns the problem of a later step, which has no additional keys: the first one had them."""
    return dataclasses.replace(problem, **part, additional_keys=None, additional_values=None)
