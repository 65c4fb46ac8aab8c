"""Compares the op on maps that are split over eight CPU devices with the op on one: `spatial_oracle.py IMPLEMENTATION AXIS_TYPE`.

For every call outputs, log-sum-exps and all gradients must be equal to rounding, gradients must lie as what they are of, and no
collective but exchanges between devices and the sums of what is on all devices may be in the program. `check(name)` also returns
the program.
"""

import os
import re
import sys

os.environ |= {"JAX_NUM_CPU_DEVICES": "8", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from natjax_kernels import neighborhood_attention

# Shape of queries, where their axes lie on the mesh (a: 2 devices, b: 4), and the call; `keys` is the keys' map and heads.
CASES = {
    "one axis": ((1, 20, 10, 2, 4), (None, "b"), {"kernel_size": 3}),
    "even, dilated, of parts that dilation does not divide": (
        (2, 40, 10, 2, 4), ("a", "b"), {"kernel_size": (4, 5), "dilation": (3, 2)},
    ),
    "several hops": ((1, 32, 2, 4), (None, ("a", "b")), {"kernel_size": 7, "dilation": 2}),
    "stride and causal": (
        (1, 24, 16, 2, 4), (None, "a", "b"), {"kernel_size": (4, 5), "stride": (2, 3), "is_causal": (True, False)},
    ),
    "periodic": ((1, 24, 16, 2, 4), (None, "b", "a"), {"kernel_size": (5, 4), "periodic": True, "dilation": (2, 1)}),
    "heads too": ((1, 8, 12, 8, 4), (None, "b", None, "a"), {"kernel_size": 3, "keys": (8, 12, 4)}),
    "additional keys and a mask": (
        (1, 16, 12, 2, 4), (None, "b"), {"kernel_size": 3, "logits_soft_cap": 2.0, "additional": 3, "mask": 0.6},
    ),
    "maps of mixed sizes": (
        (2, 32, 16, 2, 4), (None, "b", "a"), {"kernel_size": (5, 3), "dilation": (2, 1), "sizes": [[29, 16], [17, 7]]},
    ),
    "finer and coarser queries": ((1, 16, 8, 2, 4), (None, "b", "a"), {"kernel_size": 3, "keys": (8, 16, 1)}),
    "video": ((1, 8, 8, 6, 1, 4), (None, "b", "a"), {"kernel_size": (3, 5, 4), "is_causal": (True, False, False)}),
    "a ring": ((1, 32, 2, 4), (None, ("a", "b")), {"kernel_size": -1, "additional": 2, "mask": 0.6}),
    "a causal ring, dilated": ((1, 12, 2, 4), (None, "b"), {"kernel_size": -1, "dilation": 2, "is_causal": True}),
    "a periodic ring beside halos": (
        (1, 16, 16, 2, 4), (None, "b", "a"), {"kernel_size": (-1, 3), "periodic": (True, False)},
    ),
    "rings along both axes": ((1, 8, 8, 1, 4), (None, "b", "a"), {"kernel_size": (-1, 8), "rpb": False}),
}  # fmt: skip
# Of the largest value of an array: sums of a device are in another order.
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}


def arrays_of(shape, options, dtype):
    """Returns the arrays of a call, and takes what describes them out of its options."""
    rng = np.random.default_rng(0)
    batch, *spatial, heads, channels = shape
    *sides, key_heads = options.pop("keys", (*spatial, heads))
    key = batch, *sides, key_heads, channels
    shapes = {"query": shape, "key": key, "value": key}
    if options.pop("rpb", True):
        kernel, dilation = (np.broadcast_to(options.get(name, 1), len(sides)) for name in ("kernel_size", "dilation"))
        kernel = np.where(kernel < 0, sides // dilation, kernel)
        shapes["rpb"] = (heads, *(2 * kernel - 1))
    if count := options.pop("additional", 0):
        shapes |= dict.fromkeys(("additional_keys", "additional_values"), (batch, count, key_heads, channels))
    arrays = {name: jnp.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}
    if share := options.pop("mask", 0):
        options["key_mask"] = jnp.asarray(rng.random(key[:-2]) < share)
    return arrays


def check(name, implementation, axis_type):
    """Compares one call; returns the compiled program of many devices."""
    shape, spec, options = CASES[name]
    dtype, options = "float64" if jax.config.jax_enable_x64 else "float32", dict(options)
    arrays = arrays_of(shape, options, dtype)
    constants = {name: jnp.asarray(options.pop(name)) for name in ("key_mask", "sizes") if name in options}

    def run(arrays, constants):
        def results(arrays):
            out, lse = neighborhood_attention(
                **arrays, **constants, **options, return_lse=True, implementation=implementation
            )
            return out, jnp.where(jnp.isfinite(lse), lse, 0)

        results, pull = jax.vjp(results, arrays)
        return results, pull(jax.tree.map(jnp.cos, results))[0]

    expected = jax.jit(run)(arrays, constants)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType[axis_type],) * 2)
    spec = (*spec, *(None,) * (len(shape) - len(spec)))
    of_rest = {"rpb": (spec[-2],), "additional_keys": (spec[0],), "additional_values": (spec[0],), "sizes": ()}
    specs = {"query": spec, "key": spec, "value": spec, "key_mask": spec[:-2], **of_rest}

    def put(named):
        return {name: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*specs[name]))) for name, x in named.items()}

    placed = put(arrays), put(constants)
    program = jax.jit(run).lower(*placed).compile()
    got = program(*placed)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        error = np.max(np.abs(np.asarray(a) - np.asarray(b))) / max(1, np.max(np.abs(b)))
        assert error <= TOLERANCE[dtype], (name, path, error)
    for which, gradient in got[1].items():
        assert gradient.sharding.is_equivalent_to(placed[0][which].sharding, gradient.ndim), (name, which)
    assert got[0][0].sharding.is_equivalent_to(placed[0]["query"].sharding, len(shape)), name
    kinds = {kind for kind, _ in collectives(program)}
    assert (" while(" in program.as_text()) >= ("ring" in name), name  # a loop over the parts
    assert "collective-permute" in kinds, name
    assert kinds <= {"collective-permute", "all-reduce"}, (name, kinds)
    return program


def collectives(program):
    """Returns kind and shape of all collectives of a program."""
    found = re.findall(
        r"= \(?\w+\[([\d,]*)\]\S* (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(",
        program.as_text(),
    )
    return [(kind, tuple(int(n) for n in shape.split(",") if n)) for shape, kind in found]


if __name__ == "__main__":
    implementation, axis_type, *names = sys.argv[1:]
    for name in names or CASES:
        check(name, implementation, axis_type)
        print(name, flush=True)
