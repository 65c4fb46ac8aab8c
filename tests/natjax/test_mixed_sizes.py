"""Batches of images of mixed sizes give what each image gives alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.configuration import DinatSConfig, NatIsotropicConfig

pytestmark = pytest.mark.nnx
# The last level's maps of the second and third image are smaller than its windows.
SIZES = np.array([[75, 100], [96, 37], [33, 64]])
SMALL = {"embed_dim": 16, "kernel_size": 3, "num_labels": 5}
CONFIG = natjax.NatConfig(
    embed_dim=16,
    depths=[1, 1],
    num_heads=[1, 2],
    kernel_size=3,
    dilations=[[3], [2]],
    num_labels=5,
    out_features=["stem", "stage1", "stage2"],
)
FAMILIES = {
    "nat": CONFIG,
    "dinat_s": DinatSConfig(**SMALL, depths=[1, 1], num_heads=[1, 2], dilations=[[3], [2]]),
    "isotropic": NatIsotropicConfig(**SMALL, depths=[2], num_heads=[2], dilations=[[1, 2]], patch_size=10),
}


@pytest.fixture(scope="module")
def batch():
    """Pixel values, NaN outside of the images, and their mask."""
    mask = np.stack([(np.indices((96, 100)) < size[:, None, None]).all(axis=0) for size in SIZES])
    pixels = np.random.default_rng(0).normal(size=(3, 96, 100, 3)).astype("float32")
    return jnp.asarray(np.where(mask[..., None], pixels, np.nan)), jnp.asarray(mask)


def images(pixels):
    return [pixels[i : i + 1, :height, :width] for i, (height, width) in enumerate(SIZES)]


@pytest.mark.parametrize("family", FAMILIES)
def test_classification(batch, family):
    pixels, mask = batch
    model = natjax.NatForImageClassification(FAMILIES[family], rngs=nnx.Rngs(0))
    logits = jax.jit(lambda x, mask=None: model(x, pixel_mask=mask).logits)
    together = logits(pixels, mask)
    for got, image in zip(together, images(pixels), strict=True):
        np.testing.assert_allclose(got, logits(image)[0], atol=1e-5)
    np.testing.assert_allclose(logits(pixels, mask.astype("int32")), together, atol=1e-5)


def test_features_are_those_of_each_alone_and_0_past_it(batch):
    pixels, mask = batch
    model = natjax.NatModel(CONFIG, rngs=nnx.Rngs(0))
    backbone = natjax.NatBackbone(CONFIG, rngs=nnx.Rngs(0))

    @jax.jit
    def maps(pixels, mask=None):
        features = model(pixels, pixel_mask=mask, output_hidden_states=True)
        of_backbone = backbone(pixels, pixel_mask=mask).feature_maps
        return [features.last_hidden_state, *features.hidden_states, *of_backbone]

    together = maps(pixels, mask)
    for i, image in enumerate(images(pixels)):
        for got, right in zip(together, maps(image), strict=True):
            height, width = right.shape[1:3]
            np.testing.assert_allclose(got[i, :height, :width], right[0], atol=2e-5)
            assert not got[i, height:].any()
            assert not got[i, :, width:].any()


def test_gradients(batch):
    pixels, mask = batch
    model = natjax.NatForImageClassification(CONFIG, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)

    def loss(params, pixels, mask=None):
        return (nnx.merge(graph, params)(pixels, pixel_mask=mask).logits ** 2).sum()

    together = jax.jit(jax.grad(loss))(params, pixels, mask)
    alone = [jax.jit(jax.grad(loss))(params, image) for image in images(pixels)]
    expected = jax.tree.map(lambda *x: sum(x), *alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(1, abs(b).max())), together, expected)


def test_remat(batch):
    pixels, mask = batch
    model = natjax.NatForImageClassification(CONFIG, rngs=nnx.Rngs(0))

    def logits(model):
        graph, params = nnx.split(model)
        return jax.jit(lambda params: nnx.merge(graph, params)(pixels, pixel_mask=mask).logits)(params)

    again, plain = logits(nnx.view(model, remat=True)), logits(model)
    np.testing.assert_allclose(again, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask[:, :5], r"here \(3, 96, 100\); got bool of shape \(3, 5, 100\)"),
        (lambda mask: mask.astype("float32"), "got float32"),
        (lambda mask: mask.at[1].set(False), "image 1 has no pixel"),
        (lambda mask: mask.at[2, 0, 0].set(False), "image 2 is no rectangle at the top left"),
    ],
)
def test_masks_that_do_not_fit(batch, change, message):
    pixels, mask = batch
    model = natjax.NatModel(CONFIG, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        model(pixels, pixel_mask=change(mask))


def test_attention_weights(batch):
    pixels, mask = batch
    model = natjax.NatModel(CONFIG, rngs=nnx.Rngs(0))
    attentions = jax.jit(lambda x, mask=None: model(x, pixel_mask=mask, output_attentions=True).attentions)
    together = attentions(pixels, mask)
    for i, image in enumerate(images(pixels)):
        for got, right in zip(together, attentions(image), strict=True):
            height, width = right.shape[2:4]
            np.testing.assert_allclose(got[i, :, :height, :width], right[0], atol=1e-5)


def test_attention_dropout():
    """Weights are dropped in training, and nothing past an entry's own size reaches a gradient."""
    layer = natjax.NeighborhoodAttention(8, 2, kernel_size=3, dilation=2, attention_dropout=0.5, rngs=nnx.Rngs(0))
    x, sizes = np.random.default_rng(0).normal(size=(2, 9, 8, 8)), jnp.asarray([[9, 8], [7, 4]])  # one is padded to 6
    x[1, 7:] = x[1, :, 4:] = np.nan
    graph, params = nnx.split(nnx.view(layer, deterministic=False))

    @jax.jit
    def run(params):
        y, weights = nnx.merge(graph, params)(
            jnp.asarray(x, "float32"), sizes=sizes, rngs=jax.random.key(0), output_attentions=True
        )
        return jnp.sum(y[0] ** 2) + jnp.sum(y[1, :7, :4] ** 2), weights

    (_, weights), gradients = jax.value_and_grad(run, has_aux=True)(params)
    for entry, (height, width) in enumerate([(9, 8), (7, 6)]):
        assert 0.4 < np.mean(weights[entry, :, :height, :width] > 0) < 0.6
        assert not weights[entry, :, height:].any()
        assert not weights[entry, :, :, width:].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
