"""Sharded batches and heads: results and gradients are those of one device, and what needs no collective has none.

For the fused kernels see test_triton_meshes.py. Each test is a script that a process with four CPU devices runs.
"""

import os
import subprocess
import sys

import pytest

SETUP = """
import jax, jax.numpy as jnp, numpy as np, natjax_kernels.xla.tiles
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from natjax_kernels import neighborhood_attention
x = jax.random.normal(jax.random.key(0), (8, 12, 15, 2, 4))
rpb = jax.random.normal(jax.random.key(1), (2, 5, 5))
def op(x, rpb):
    return neighborhood_attention(x, x + 1, x, kernel_size=3, dilation=(2, 1), rpb=rpb, implementation="xla")
def both(op):
    def run(x, rpb):
        out, pull = jax.vjp(op, x, rpb)
        return out, *pull(2 * out)
    return jax.jit(run)
expected = both(op)(x, rpb)
"""

# Computes as calls of windows of thousands of tokens: what they know of their tiles in the program, halos added one by one.
AS_LARGE = """
import natjax_kernels.axis, natjax_kernels.xla.halos, natjax_kernels.xla.tables
natjax_kernels.axis._LARGEST_CONSTANT = natjax_kernels.xla.halos._MANY = natjax_kernels.xla.tables._LARGEST_TABLE = 0
"""

SHARDED_BATCHES = """
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, P("data"))), jax.device_put(rpb, NamedSharding(mesh, P()))
        text = jax.jit(op).lower(*placed).compile().as_text()
        for name in ("all-", "collective", "reduce-scatter"):
            assert name not in text, (kind, text)
        got = both(op)(*placed)
    assert got[0].sharding.spec[0] == "data", kind
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5, err_msg=str(kind))
"""

DEFAULT_MESH = """
from natjax_kernels import neighborhood_attention_with_weights
mesh = jax.make_mesh((2, 2), ("data", "heads"))  # Explicit axes, and no jax.set_mesh
def put(x, *spec):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))
def with_weights(x, rpb, **dropout):
    return neighborhood_attention_with_weights(x, x + 1, x, kernel_size=3, dilation=(2, 1), rpb=rpb, **dropout)[0]
def with_dropout(x, rpb):
    return with_weights(x, rpb, dropout_rate=0.5, dropout_key=jax.random.split(jax.random.key(0))[0])
def reference(x, rpb):
    return neighborhood_attention(x, x + 1, x, kernel_size=3, dilation=(2, 1), rpb=rpb, implementation="reference")
def summed_later(function, x, rpb):
    rpb = jax.sharding.reshard(rpb, NamedSharding(mesh, P(reduced={"data", "heads"})))
    out, dx, d_rpb = both(function)(x, rpb)
    assert jax.typeof(d_rpb).sharding.spec.unreduced == {"data", "heads"}
    return out, dx, d_rpb
everywhere = ((("data",), ()), ((None, None, None, "heads"), ("heads",)), (("data", None, None, "heads"), ()), ((), ("heads",)))
for function in (op, with_weights, reference, with_dropout):
    expected = both(function)(x, rpb)
    for spec, of_rpb in everywhere:
        placed = put(x, *spec), put(rpb, *of_rpb)
        got = both(function)(*placed)
        for a, b in zip(got[1:], placed):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (function, spec, a.sharding)
        for a, b in zip(got, expected):
            np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5, err_msg=str((function, spec)))
    for spec in (("data",), ("data", None, None, "heads")):
        program = jax.jit(summed_later, static_argnums=0).lower(function, put(x, *spec), put(rpb)).compile()
        assert function != op or "all-reduce" not in program.as_text(), spec
        *got, d_rpb = program(put(x, *spec), put(rpb))
        for a, b in zip([*got, jax.sharding.reshard(d_rpb, NamedSharding(mesh, P()))], expected):
            np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5, err_msg=str((function, spec)))
    for spec in ((None, "data"), ("data",)):
        got = jax.jit(jax.vmap(function, (0, None)))(put(jnp.stack([x, x / 2]), *spec), put(rpb))
        np.testing.assert_allclose(np.asarray(got)[0], expected[0], rtol=5e-5, atol=5e-5)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(both(function)(*placed)[1], expected[1], rtol=5e-5, atol=5e-5)
    manual = jax.shard_map(function, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"})
    got = both(manual)(put(x, "data", None, None, "heads"), put(rpb, "heads"))
    for a, b in zip(got, expected if function != with_dropout else ()):
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5)
expected = both(op)(x, rpb)
for specs in (((), (), ("data",)), ((), (None, None, None, "heads"), ()), (("data",), (None, None, None, "heads"), ())):
    def apart(q, k, v):
        return neighborhood_attention(q, k + 1, v, kernel_size=3, dilation=(2, 1), rpb=rpb, implementation="xla")
    placed = [put(x, *spec) for spec in specs]
    out, pull = jax.vjp(jax.jit(apart), *placed)
    np.testing.assert_allclose(out, expected[0], rtol=5e-5, atol=5e-5)
    got = jax.jit(pull)(2 * out)
    np.testing.assert_allclose(sum(map(np.asarray, got)), expected[1], rtol=5e-5, atol=5e-5)
    for a, b in zip(got, placed):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (specs, a.sharding)
"""

SHARD_MAP = """
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
per_shard = jax.shard_map(op, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
for budget in (2**24, 2000):  # at once, and in steps
    natjax_kernels.xla.tiles.scores_per_step = lambda: budget
    text = both(per_shard).lower(x, rpb).as_text()
    assert ("while" in text) == (budget == 2000)
    for a, b in zip(both(per_shard)(x, rpb), expected):
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5, err_msg=str(budget))
"""


SHARED_HEADS = """
mesh = jax.make_mesh((4,), ("heads",))  # Explicit, as is the default
draw = lambda n, *shape: jax.random.normal(jax.random.key(n), shape)
def put(x, axis):
    return jax.device_put(x, NamedSharding(mesh, P(*(None,) * axis, "heads")))
query = draw(0, 1, 8, 8, 4)
for key_heads in (1, 2):
    arrays = [draw(1, 1, 8, key_heads, 4), draw(2, 1, 8, key_heads, 6), draw(3, 1, 3, key_heads, 4), draw(4, 1, 3, key_heads, 6)]
    def op(query, key, value, more_keys, more_values):
        return neighborhood_attention(query, key, value, kernel_size=3, additional_keys=more_keys, additional_values=more_values,
                                      key_mask=jnp.arange(8)[None] > 2, implementation="xla")
    def run(*arrays):
        out, pull = jax.vjp(op, *arrays)
        return out, *pull(2 * out)
    got, expected = (jax.jit(run)(q, *arrays) for q in (put(query, 2), query))
    assert got[0].sharding.spec == P(None, None, "heads", None)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5)
for axis in (3,):
    try:
        op(put(query, axis), *arrays)
    except ValueError as error:
        assert "may be sharded along Explicit axes by its batch, its map and its heads; got" in str(error)
    else:
        raise AssertionError(axis)
"""

FEATURES = """
from natjax_kernels import neighborhood_attention_with_weights
def with_weights(**arguments):
    out, weights = neighborhood_attention_with_weights(**arguments)
    return out, weights.sum(axis=-1)
def by(implementation):
    return lambda **arguments: neighborhood_attention(**arguments, return_lse=True, implementation=implementation)
def program(function, options):
    def run(arrays, mask, sizes):
        results, pull = jax.vjp(lambda arrays: function(**arrays, key_mask=mask, sizes=sizes, **options), arrays)
        finite = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), results)
        return finite, pull(finite)[0]
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
explicit, auto = (jax.make_mesh((2, 2), ("data", "heads"), axis_types=(kind,) * 2) for kind in (AxisType.Explicit, AxisType.Auto))
tokens, few = P("data", None, None, "heads"), P("data", None, "heads")
specs = {"query": tokens, "key": tokens, "value": tokens, "rpb": P("heads"), "additional_keys": few, "additional_values": few}
rng = np.random.default_rng(0)
shapes = (2, 6, 8, 2, 3), (2, 6, 8, 2, 5), (4, 5, 3), (2, 3, 2, 3), (2, 3, 2, 5)
of_keys = [jnp.asarray(rng.normal(size=shape), "float32") for shape in shapes]
mask = jnp.asarray(rng.random((2, 6, 8)) < 0.7)
calls = (  # a ring, along the other axis coarser queries; finer queries and maps of mixed sizes
    ((6, 4), {"kernel_size": (3, 2), "dilation": (1, 2), "periodic": (True, False)}, None),
    ((12, 8), {"kernel_size": (3, 2), "stride": (2, 1), "is_causal": (False, True)}, jnp.asarray([[5, 8], [6, 7]])),
)
for queries, options, sizes in calls:
    query = jnp.asarray(rng.normal(size=(2, *queries, 4, 3)), "float32")
    arrays = dict(zip(specs, (query, *of_keys), strict=True))
    for function, meshes in ((by("xla"), (auto, explicit)), (by("reference"), (explicit,)), (with_weights, (explicit,))):
        expected = program(function, options)(arrays, mask, sizes)
        for mesh in meshes:
            placed, hidden, small = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
                                                 (arrays, mask, sizes), (specs, P("data"), sizes if sizes is None else P()))
            got = program(function, options)(placed, hidden, small)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5, err_msg=str((options, mesh)))
            for name, x in placed.items():
                assert got[1][name].sharding.is_equivalent_to(x.sharding, x.ndim), (name, options, mesh)
"""


@pytest.mark.parametrize("size", ["", AS_LARGE], ids=["small", "large"])
def test_sharded_batches_need_no_collectives(size):
    run_apart(SETUP + size + SHARDED_BATCHES)


def test_gradients_on_the_default_mesh():
    run_apart(SETUP + DEFAULT_MESH)


def test_shard_map_sums_the_gradient_of_a_replicated_bias():
    run_apart(SETUP + SHARD_MAP)


def test_sharded_heads_that_share_fewer_key_heads():
    run_apart(SETUP + SHARED_HEADS)


def test_every_feature_on_meshes():
    """Fewer key heads, additional keys and a mask with each; batch and heads are sharded."""
    run_apart(SETUP + FEATURES)


def run_apart(code):
    """Runs a script in a process that has four CPU devices."""
    more = {"JAX_NUM_CPU_DEVICES": "4", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
