"""Detectors on meshes of Explicit axes: the numbers of one device, and no images gathered where the batch alone is split."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import natjax

BACKBONE = natjax.NatConfig(embed_dim=4, depths=(1, 1), num_heads=(1, 1), kernel_size=3, drop_path_rate=0.0)
CONFIG = natjax.MaskRcnnConfig(
    backbone_config=BACKBONE,
    num_labels=3,
    anchor_scale=2,
    fpn_channels=6,
    rpn_channels=5,
    box_num_convs=1,  # with batch normalisation, as in a cascade
    box_conv_channels=7,
    box_num_fcs=1,
    box_fc_channels=8,
    mask_num_convs=1,
    mask_channels=9,
    rpn_pre_nms=40,
    rpn_post_nms=20,
    score_threshold=0.0,
    max_detections=5,
    train_rpn_post_nms=30,
    rpn_batch_size=16,
    box_batch_size=16,
)
IMAGES, OBJECTS, SIDE = 4, 3, 64
# Devices, and where images lie: the last level of the backbone has a row for each of 8 devices.
MESHES = {"batch": ((4, 1), P("data")), "rows": ((2, 8), P("data", "rows"))}
# Training sums gradients over devices by themselves, once per step; a step of one's own may leave that to JAX.
PROGRAMS = {"batch": ("step", "step summing later", "detect"), "rows": ("step summing later", "detect")}
COLLECTIVES = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def batch_of():
    """As many objects in an image as its number; the last one is smaller than its array."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (IMAGES, OBJECTS, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 30, corners.shape)], axis=-1).astype(np.float32)
    return {
        "pixel_values": rng.standard_normal((IMAGES, SIDE, SIDE, 3), np.float32),
        "image_sizes": np.array([[SIDE, SIDE]] * (IMAGES - 1) + [[48, 56]], np.int32),
        "labels": {
            "boxes": boxes,
            "class_labels": rng.integers(0, 3, (IMAGES, OBJECTS)).astype(np.int32),
            "valid": np.arange(OBJECTS) < np.arange(IMAGES)[:, None],
            "masks": rng.random((IMAGES, OBJECTS, SIDE, SIDE)) < 0.5,
        },
    }


def programs():
    """Returns parameters and statistics, and functions of these, a batch and, of the first, a key: training and detection."""
    model = natjax.MaskRcnnForObjectDetection(CONFIG, rngs=nnx.Rngs(0))
    training, params, stats = nnx.split(nnx.view(model, use_running_average=False), nnx.Param, nnx.BatchStat)
    detecting, _ = nnx.split(model)

    def losses(params, stats, batch, key):
        model = nnx.merge(training, params, stats, copy=True)
        found = model.losses(**batch, rngs=key)
        return found["loss"], (found, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def step(params, stats, batch, key):
        (_, (found, stats)), gradients = jax.value_and_grad(losses, has_aux=True)(params, stats, batch, key)
        return {"losses": found, "statistics": stats, "gradients": nnx.to_pure_dict(gradients)}

    def step_summing_later(params, stats, batch, key):
        mesh = jax.typeof(batch["pixel_values"]).sharding.mesh
        params = jax.sharding.reshard(params, NamedSharding(mesh, P(reduced=set(mesh.axis_names))))
        found = step(params, stats, batch, key)
        return found | {"gradients": jax.sharding.reshard(found["gradients"], NamedSharding(mesh, P()))}

    def detect(params, stats, batch):
        found = nnx.merge(detecting, params, stats, copy=True)(batch["pixel_values"], batch["image_sizes"])
        return {name: getattr(found, name) for name in ("boxes", "scores", "labels", "valid", "masks")}

    return (params, stats), {"step": step, "step summing later": step_summing_later, "detect": detect}


def main(path: str) -> None:
    variables, functions = programs()
    placed = {"one": (variables, batch_of())}
    programs_of = {"one": ("step", "detect"), **PROGRAMS}
    for name, (shape, images) in MESHES.items():
        devices = jax.devices()[: math.prod(shape)]
        mesh = jax.make_mesh(shape, ("data", "rows"), (AxisType.Explicit,) * 2, devices=devices)
        batch = {key: jax.device_put(x, NamedSharding(mesh, P("data"))) for key, x in batch_of().items()}
        batch["pixel_values"] = jax.device_put(batch["pixel_values"], NamedSharding(mesh, images))
        placed[name] = jax.device_put(variables, NamedSharding(mesh, P())), batch
    found = {}
    for name, (state, batch) in placed.items():
        for kind in programs_of[name]:
            arguments = (*state, batch) if kind == "detect" else (*state, batch, jax.random.key(1))
            program = jax.jit(functions[kind]).lower(*arguments).compile()
            arrays = {"collectives": np.array(COLLECTIVES.findall(program.as_text())), **program(*arguments)}
            for keys, array in jax.tree_util.tree_flatten_with_path(arrays)[0]:
                found["/".join((name, kind, jax.tree_util.keystr(keys)))] = np.asarray(array)
    np.savez(path, **found)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("meshes") / "found.npz"
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "16", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(path))


@pytest.mark.parametrize(("mesh", "program"), [(mesh, program) for mesh in MESHES for program in PROGRAMS[mesh]])
def test_numbers_are_those_of_one_device(found, program, mesh):
    of_one = f"one/{program.split()[0]}/"
    names = [name for name in found if name.startswith(of_one) and "collectives" not in name]
    assert len(names) > 4
    for name in names:
        expected, tolerance = found[name], 1e-5 * max(1, np.abs(found[name]).max())
        np.testing.assert_allclose(
            found[name.replace(of_one, f"{mesh}/{program}/")], expected, rtol=1e-4, atol=tolerance, err_msg=name
        )
    if program == "detect":
        assert found["one/detect/['valid']"].sum() > IMAGES


def test_only_sums_go_between_devices(found):
    for program in ("step", "step summing later"):
        assert set(found[f"batch/{program}/['collectives']"]) == {"all-reduce"}
    assert found["batch/detect/['collectives']"].size == 0


if __name__ == "__main__":
    main(sys.argv[1])
