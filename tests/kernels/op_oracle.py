"""Arguments of the op, its output with all gradients, and how close to the oracle they must be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels import neighborhood_attention

# Largest error beside float64 arithmetic on the same (rounded) inputs, relative to the largest entry.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


def draw(shape, kernel_size, bias, dtype="float32", value_channels=None):
    """Returns query, key, value, rpb and an output gradient of normal numbers."""
    rng = np.random.default_rng(0)
    rank = len(shape) - 3
    kernel = (kernel_size,) * rank if isinstance(kernel_size, int) else kernel_size
    shapes = [shape, shape, (*shape[:-1], value_channels or shape[-1])]
    query, key, value, d_out = (jnp.asarray(rng.normal(size=s), dtype) for s in (*shapes, shapes[2]))
    rpb = jnp.asarray(rng.normal(size=(shape[-2], *(2 * k - 1 for k in kernel))), dtype) if bias else None
    return (query, key, value, rpb), d_out


def both(arguments, d_out, **options):
    """Returns the output and all gradients of sum(output * d_out)."""
    return _evaluated(jax.jit(functools.partial(_run, options)), arguments, d_out)


@functools.cache
def exact(case, dtype):
    """Returns what `both` should be for a case drawn in a dtype: the reference's, in float64."""
    drawn = draw(case.shape, case.kernel_size, case.bias, dtype)
    with jax.enable_x64(True):
        return _evaluated(_reference(case), *jax.tree.map(lambda x: x.astype("float64"), drawn))


@functools.cache
def _reference(case):
    return jax.jit(functools.partial(_run, case.options() | {"implementation": "reference"}))


def _run(options, arguments, d_out):
    out, pull = jax.vjp(lambda q, k, v, rpb: neighborhood_attention(q, k, v, rpb=rpb, **options), *arguments)
    return out, *pull(d_out)


def _evaluated(run, arguments, d_out):
    return [None if x is None else np.asarray(x, np.float64) for x in run(arguments, d_out)]


def assert_close(got, expected, tolerance):
    for name, a, b in zip(["out", "dquery", "dkey", "dvalue", "drpb"], got, expected, strict=True):
        if b is None:
            assert a is None
            continue
        size = max(1.0, np.abs(b).max(initial=0))
        np.testing.assert_allclose(a / size, b / size, rtol=0, atol=tolerance, err_msg=name)
