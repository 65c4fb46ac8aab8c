"""BatchNorm against its definition in numpy and, where it is installed, PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from natjax.nn.batch_norm import BatchNorm

pytestmark = pytest.mark.nnx


def layer(features=3, **options):
    new = BatchNorm(features, rngs=nnx.Rngs(0), **{"dtype": None, "param_dtype": jnp.float32, **options})
    rng = np.random.default_rng(1)
    new.scale[...], new.bias[...] = (jnp.asarray(rng.standard_normal(features), new.scale.dtype) for _ in range(2))
    new.mean[...] = jnp.asarray(rng.standard_normal(features), jnp.float32)
    new.var[...] = jnp.asarray(rng.uniform(0.5, 2, features), jnp.float32)
    new.num_batches_tracked[...] = jnp.asarray(5, jnp.int32)
    return new


def maps(*shape):
    return (np.random.default_rng(0).standard_normal(shape) * [0.5, 1, 7] + [0, 100, -3]).astype(np.float32)


def close(actual, desired):
    np.testing.assert_allclose(np.asarray(actual), desired, rtol=2e-5, atol=2e-5)


def test_running_statistics_normalise_and_stay():
    new, x = layer(), maps(2, 3, 4, 3)
    before = nnx.to_pure_dict(nnx.state(new, nnx.BatchStat))
    expected = (x - np.asarray(new.mean)) / np.sqrt(np.asarray(new.var) + 1e-5) * np.asarray(new.scale)
    np.testing.assert_allclose(new(x), expected + np.asarray(new.bias), rtol=2e-5, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(new, nnx.BatchStat)))


def test_a_batch_normalises_and_updates_by_its_unbiased_variance():
    new, x = layer(), maps(2, 3, 4, 3)
    mean, var = (np.asarray(v[...]) for v in (new.mean, new.var))
    axes = (0, 1, 2)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(axes)) / np.sqrt(wide.var(axes) + 1e-5) * np.asarray(new.scale) + np.asarray(new.bias)
    close(nnx.view(new, use_running_average=False)(x), expected)
    close(new.mean[...], 0.9 * mean + 0.1 * wide.mean(axes))
    close(new.var[...], 0.9 * var + 0.1 * wide.var(axes, ddof=1))
    assert new.num_batches_tracked[...] == 6


def statistics_and_vjp(layer, x, *counted):
    """Normalised maps, new running statistics, and a function from a cotangent of the former to that of `x`."""
    graphdef, state = nnx.split(nnx.view(layer, use_running_average=False))

    def normalise(x):
        new = nnx.merge(graphdef, state, copy=True)
        return new(x, *counted), nnx.state(new, nnx.BatchStat)

    y, pull, statistics = jax.vjp(normalise, x, has_aux=True)
    return y, statistics, lambda cotangent: pull(cotangent)[0]


def test_padded_maps_do_not_count():
    counted, x = np.array([True, False, True, False]), maps(4, 3, 5, 3)
    x[~counted] *= 100

    got, statistics, pull = statistics_and_vjp(layer(), x, counted)
    want, statistics_alone, pull_alone = statistics_and_vjp(layer(), x[counted])
    close(got[counted], want)
    cotangent = jnp.where(counted[:, None, None, None], jnp.sin(got), 0)
    close(pull(cotangent)[counted], pull_alone(jnp.sin(want)))
    jax.tree.map(close, statistics, statistics_alone)


def test_padding_alone_leaves_the_running_statistics():
    x = maps(2, 3, 5, 3)
    y, statistics, pull = statistics_and_vjp(layer(), x, np.zeros(2, bool))
    jax.tree.map(np.testing.assert_array_equal, statistics, nnx.state(layer(), nnx.BatchStat))
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(pull(jnp.zeros_like(y)), np.zeros_like(x))


def test_pytorch_does_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch parity is checked on Python 3.11")
    new, x = layer(), maps(2, 3, 4, 3)
    theirs = torch.nn.BatchNorm2d(3)
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    theirs.load_state_dict(
        {name: torch.tensor(np.array(getattr(new, ours)[...])) for ours, name in names.items()}, False
    )
    image = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    cotangent = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32)

    graphdef, params, stats = nnx.split(nnx.view(new, use_running_average=False), nnx.Param, nnx.BatchStat)

    def apply(params, x):
        model = nnx.merge(graphdef, params, stats, copy=True)  # the trace has variables of its own
        return model(x), nnx.state(model, nnx.BatchStat)

    for _ in range(2):  # twice, as the second batch is averaged with the first one's statistics
        desired = theirs(image)
        actual, pull, stats = jax.vjp(apply, params, x, has_aux=True)
    close(actual.transpose(0, 3, 1, 2), desired.detach().numpy())
    close(stats["mean"][...], theirs.running_mean.numpy())
    close(stats["var"][...], theirs.running_var.numpy())
    desired.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    of_params, of_x = pull(jnp.asarray(cotangent))
    close(of_x.transpose(0, 3, 1, 2), image.grad.numpy())
    close(of_params["scale"][...], theirs.weight.grad.numpy())
    close(of_params["bias"][...], theirs.bias.grad.numpy())


def test_one_value_per_channel_is_an_error_in_training_alone():
    new = layer()
    new(maps(1, 1, 1, 3))
    with pytest.raises(ValueError, match=r"more than 1 value per channel.*\(1, 1, 1, 3\)"):
        nnx.view(new, use_running_average=False)(maps(1, 1, 1, 3))


def test_statistics_of_bfloat16_are_float32():
    x = jnp.asarray(maps(2, 4, 4, 3), jnp.bfloat16)
    new = layer(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert nnx.view(new, use_running_average=False)(x).dtype == jnp.bfloat16
    same = layer()
    same.mean[...], same.var[...] = layer().mean[...], layer().var[...]
    nnx.view(same, use_running_average=False)(x.astype(jnp.float32))
    for ours, theirs in ((new.mean, same.mean), (new.var, same.var)):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours[...], theirs[...])
