"""Models on images that are split over devices along their sides: the numbers of one device, and maps are never gathered.

Every case runs in a process of eight CPU devices: `test_spatial.py CASE`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import natjax
from natjax.nn.initializers import truncated_normal
from natjax.nn.layers import conv, downsampling_conv, linear
from natjax.nn.patches import patches
from natjax.nn.resizing import adaptive_average_pool, conv3x3_of_pyramid, resize_bilinear

pytestmark = pytest.mark.nnx

COLLECTIVES = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
TINY = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "kernel_size": 3, "drop_path_rate": 0.3}
BY_ROW, BY_BOTH = P("a", "b"), P(None, "b", "a")  # the mesh is 2 x 4
rng = np.random.default_rng(0)


def of_layers(spec: P):
    """Every layer's output, and gradients of its input and its parameters."""
    options = {"kernel_init": truncated_normal(0.2), "dtype": None, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    modules = {
        "convolution": conv(3, 5, 3, **options),
        "projection": conv(3, 5, 1, **options),
        "downsampling": downsampling_conv(3, 5, **options),
        "linear": linear(3, 5, **options),
    }
    graphs = {name: nnx.split(module) for name, module in modules.items()}
    functions = {
        name: lambda params, x, graph=graph: nnx.merge(graph, params)(x) for name, (graph, _) in graphs.items()
    }
    functions |= {
        "patches": lambda _, x: patches(x, 4),
        "larger": lambda _, x: resize_bilinear(x, (48, 24)),
        "smaller": lambda _, x: resize_bilinear(x, (8, 8)),
        "of a side that does not divide": lambda _, x: resize_bilinear(x, (29, 13)),
        "pool": lambda _, x: adaptive_average_pool(x, 3),
        "pyramid": lambda _, x: conv3x3_of_pyramid(
            [x, resize_bilinear(x, (8, 4)), adaptive_average_pool(x, 2)], kernel
        ),
    }
    kernel = jnp.asarray(rng.normal(size=(3, 3, 9, 4)), jnp.float32)

    def program(params, x):
        results = {}
        for name, function in functions.items():
            y, pull = jax.vjp(function, params.get(name, {}), x)
            results[name] = y, pull(jnp.cos(y))
        return results

    params = {name: params for name, (_, params) in graphs.items()}
    return program, (params, rng.normal(size=(2, 16, 8, 3)).astype(np.float32)), (P(), spec)


def of_video(spec: P):
    """A layer's output, and gradients of frames and parameters."""
    layer = natjax.NeighborhoodAttention(
        12, 2, kernel_size=3, num_spatial_dims=3, dilation=(1, 2, 1), rope=True, qk_norm="rms_norm", rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(layer)

    def program(params, frames):
        y, pull = jax.vjp(lambda params, frames: nnx.merge(graph, params)(frames), params, frames)
        return y, pull(jnp.cos(y))

    return program, (params, rng.normal(size=(1, 8, 8, 6, 12)).astype(np.float32)), (P(), spec)


def of_classifier(config: natjax.NatConfig, spec: P, sizes=None, height=128, width=32):
    """Loss, logits and gradients, of the image's pixels too."""
    model = nnx.view(natjax.NatForImageClassification(config, rngs=nnx.Rngs(0)), deterministic=False)
    graph, params = nnx.split(model)

    def program(params, pixel_values, labels, pixel_mask, key):
        def loss(params, pixel_values):
            out = nnx.merge(graph, params)(pixel_values, labels, pixel_mask=pixel_mask, rngs=key)
            return out.loss, out.logits

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, pixel_values)

    images = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    mask = None
    if sizes is not None:
        mask = np.stack([(np.arange(height)[:, None] < h) & (np.arange(width) < w) for h, w in sizes])
    arguments = params, images, np.array([1, 3]), mask, jax.random.key(1)
    return program, arguments, (P(), spec, P(*spec[:1]), spec, P())


def of_segmentation(spec: P):
    """Loss, logits, statistics and gradients."""
    stages = ("stage1", "stage2", "stage3", "stage4")
    backbone = natjax.NatConfig(**TINY, out_features=stages)
    config = natjax.UperNetConfig(backbone_config=backbone, hidden_size=6, auxiliary_channels=5, num_labels=4)
    model = natjax.UperNetForSemanticSegmentation(config, rngs=nnx.Rngs(0))
    model = nnx.view(model, deterministic=False, use_running_average=False)
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def program(params, stats, pixel_values, labels, key):
        def loss(params, pixel_values):
            model = nnx.merge(graph, params, stats, copy=True)
            out = model(pixel_values, labels, rngs=key)
            return out.loss, (out.logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, pixel_values)

    images, labels = rng.normal(size=(2, 128, 32, 3)).astype(np.float32), rng.integers(0, 4, (2, 128, 32), np.int32)
    labels[:, :40] = config.loss_ignore_index
    return program, (params, stats, images, labels, jax.random.key(1)), (P(), P(), spec, spec, P())


WIDE_WINDOWS = natjax.DinatSConfig(**TINY, num_labels=5, dilations=((1,), (2,), (1,), (4,)))
CASES = {
    "layers by row": lambda: of_layers(BY_ROW),
    "layers by row and column": lambda: of_layers(BY_BOTH),
    "layers by row, all devices": lambda: of_layers(P(None, ("a", "b"))),
    "video": lambda: of_video(BY_BOTH),
    "classifier": lambda: of_classifier(natjax.NatConfig(**TINY, num_labels=5), BY_ROW, height=1024),
    "classifier on Auto axes": lambda: of_classifier(natjax.NatConfig(**TINY, num_labels=5), BY_ROW, height=1024),
    "mixed sizes": lambda: of_classifier(WIDE_WINDOWS, BY_BOTH, [(101, 50), (37, 64)], width=64),
    "segmentation": lambda: of_segmentation(BY_ROW),
}
GATHERING = {"layers by row, all devices", "mixed sizes"}  # axes whose result does not divide, or shorter than a window


def main(case: str) -> None:
    kind = AxisType.Auto if "Auto" in case else AxisType.Explicit
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(kind,) * 2)
    program, arguments, specs = CASES[case]()
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arguments, specs, strict=True)]
    alone, split = (jax.jit(program).lower(*x).compile() for x in (arguments, placed))
    expected, found = (jax.tree_util.tree_leaves_with_path(f(*x)) for f, x in ((alone, arguments), (split, placed)))
    for (path, a), (_, b) in zip(expected, found, strict=True):
        tolerance = 2e-6 * max(1, np.abs(a).max())
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=tolerance, err_msg=jax.tree_util.keystr(path))
    kinds = set(COLLECTIVES.findall(split.as_text()))
    assert kinds == {"all-reduce", "collective-permute"} | ({"all-gather"} if case in GATHERING else set()), kinds
    if "classifier" in case:  # whose maps are large enough for their halos not to count
        of_one, of_eighth = (program.memory_analysis().temp_size_in_bytes for program in (alone, split))
        assert of_eighth <= of_one / 8, (of_one, of_eighth)


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_one_device(case):
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (P(None, "rows"), r"multiple of 4 x 32 = 128 pixels, .* got 96\. .* to 128 pixels"),
        (P(None, None, None, "rows"), "by batch, height and width; got .* splits their channels"),
    ],
    ids=["a side that does not divide", "channels"],
)
def test_images_that_cannot_be_split(spec, message):
    mesh = AbstractMesh((4,), ("rows",), (AxisType.Explicit,))
    images = jax.ShapeDtypeStruct((1, 96, 64, 4), np.float32, sharding=NamedSharding(mesh, spec))
    model = natjax.NatModel(natjax.NatConfig(**TINY, num_channels=4), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda images: model(images).last_hidden_state, images)


if __name__ == "__main__":
    main(sys.argv[1])
