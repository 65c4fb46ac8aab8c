"""Arguments of the op, its output with all gradients, and how close to the oracle they must be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels import neighborhood_attention

STATIC = "key_mask", "sizes"  # have no gradients
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


def draw_case(case, dtype):
    """Returns the arrays of a case, by name, and the gradients of its output and log-sum-exp, of normal numbers."""
    rng = np.random.default_rng(0)

    def normal(shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    arrays = {name: normal(shape) for name, shape in case.arrays().items() if name not in STATIC}
    if case.masked:  # with queries that see nothing
        arrays["key_mask"] = jnp.asarray(rng.random(case.arrays()["key_mask"]) < 0.2)
    if case.sized:
        least = [k * d for k, d in zip(case.window.kernel_size, case.window.dilation, strict=True)]
        arrays["sizes"] = jnp.asarray(rng.integers(least, np.add(case.spatial, 1), case.arrays()["sizes"]), "int32")
    return arrays, normal(case.out_shape), normal(case.out_shape[:-1])


def split_static(arrays):
    """Returns the arrays that have gradients, and those that have none."""
    return [{name: x for name, x in arrays.items() if (name in STATIC) == static} for static in (False, True)]


def attend_to_case(case, arrays, **options):
    """Calls the op on arrays by name."""
    return neighborhood_attention(**arrays, **case.options(), **options)


def gradients(case, arrays, d_out, **options):
    """Returns, by name, the output, and the gradients of all arrays but the mask."""
    return _named(jax.jit(functools.partial(_gradients, case, options))(arrays, d_out))


@functools.cache
def exact(case, dtype):
    """Returns what `gradients` should be for a case drawn in a dtype: the reference's, in float64."""
    arrays, d_out, _ = draw_case(case, dtype)
    with jax.enable_x64(True):
        return _named(_exact(case)(*jax.tree.map(as_float64, (arrays, d_out))))


def as_float64(x):
    """Returns numbers in float64; masks and sizes remain what they are."""
    return x.astype("float64") if jnp.issubdtype(x.dtype, jnp.floating) else x


@functools.cache
def _exact(case):
    return jax.jit(functools.partial(_gradients, case, {"implementation": "reference"}))


def _gradients(case, options, arrays, d_out):
    arrays, static = split_static(arrays)
    out, pull = jax.vjp(lambda arrays: attend_to_case(case, arrays | static, **options), arrays)
    return {"out": out} | pull(d_out)[0]


def _named(results):
    return {name: np.asarray(x, np.float64) for name, x in results.items()}


def assert_all_close(got, expected, tolerance):
    """Compares results by name, relative to the largest entry of each."""
    assert got.keys() == expected.keys()
    for name, right in expected.items():
        size = max(1.0, np.abs(right).max(initial=0))
        np.testing.assert_allclose(got[name] / size, right / size, rtol=0, atol=tolerance, err_msg=name)


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
