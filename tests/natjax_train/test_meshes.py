"""Steps on meshes of eight devices: the same losses as on one, and the collectives one expects of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import natjax
from natjax_train.mesh import check_batch, check_height, height_divisor, own_loading, own_share, parse_mesh
from natjax_train.tasks.classification import Classification
from natjax_train.tasks.detection import Detection

# Micro-batches draw random numbers of their own.
ACCUMULATED = "data=2,fsdp=2,accumulate=2"
SPATIAL = "data=2,fsdp=2,space=2,accumulate=2"
CASES = ["data=1", "data=8", "data=2,fsdp=4", "fsdp=8", "data=1,accumulate=2", ACCUMULATED, SPATIAL]


def test_parse():
    assert parse_mesh("", 8) == {"data": 8, "fsdp": 1, "space": 1}
    assert parse_mesh("data=2, fsdp=4", 8) == {"data": 2, "fsdp": 4, "space": 1}
    assert parse_mesh("space=4,data=2", 8) == {"data": 2, "fsdp": 1, "space": 4}


@pytest.mark.parametrize("text", ["8", "data", "data=0", "model=2", "data=-1", "data=2;fsdp=4"])
def test_bad_meshes(text):
    with pytest.raises(ValueError, match="mesh must look like"):
        parse_mesh(text, 8)


def test_an_axis_that_is_given_twice():
    with pytest.raises(ValueError, match=r"mesh must give the devices along data once; got 'data=2,data=4'\."):
        parse_mesh("data=2,data=4", 8)


def test_too_many_devices():
    with pytest.raises(ValueError, match="needs 16 devices; there are 8"):
        parse_mesh("data=4,fsdp=4", 8)


@pytest.mark.parametrize(
    ("devices", "space", "process", "expected"),
    [(4, 1, 1, (1, 4)), (4, 2, 3, (3, 4)), (2, 4, 0, (0, 2)), (2, 4, 3, (1, 2)), (2, 8, 2, (0, 1))],
)
def test_processes_whose_devices_share_images_load_the_same(monkeypatch, devices, space, process, expected):
    assert own_share(mesh_of_four_processes(monkeypatch, devices, space, process)) == expected


def test_a_process_that_shares_only_some_of_its_images(monkeypatch):
    with pytest.raises(ValueError, match="space=2 must divide the 3 devices of a process, or be a multiple of them"):
        own_share(mesh_of_four_processes(monkeypatch, 3, 2, 0))


@pytest.mark.parametrize(("space", "allowed", "part"), [(2, 5, (1, 4)), (4, 0, (0, 2))])
def test_processes_that_share_images_skip_none(monkeypatch, space, allowed, part):
    mesh = mesh_of_four_processes(monkeypatch, 2, space, 1)
    found = own_loading(mesh, max_corrupt=5, advice="Mend or remove them.", workers=3)
    assert (found.pop("share"), found.pop("shares")) == part
    assert found.pop("advice").startswith(
        "Mend or remove" if allowed else "Processes that share images (space) must have the same"
    )
    assert found == {"max_corrupt": allowed, "workers": 3}


def mesh_of_four_processes(monkeypatch, devices, space, process):
    counts = {"process_count": 4, "process_index": process, "local_device_count": devices}
    for name, value in counts.items():
        monkeypatch.setattr(jax, name, lambda value=value: value)
    owners = np.repeat(np.arange(4), devices).reshape(-1, 1, space)
    placed = np.vectorize(lambda owner: types.SimpleNamespace(process_index=owner))(owners)
    return types.SimpleNamespace(devices=placed, shape={"data": len(owners), "fsdp": 1, "space": space})


def test_what_cannot_be_split_along_the_height():
    mesh = types.SimpleNamespace(shape={"data": 2, "fsdp": 1, "space": 4})
    with pytest.raises(
        ValueError, match=r"of 4 x 32 = 128 rows; got 224: give another --mesh, or a new run --image-size 256"
    ):
        check_height(mesh, Classification, 224, natjax.NatConfig())
    check_height(mesh, Classification, 256, natjax.NatConfig())
    check_height(mesh, Detection, 800, natjax.NatConfig())  # whose batches are padded:
    assert height_divisor(mesh, natjax.NatConfig(depths=(1,) * 5, num_heads=(1,) * 5)) == 4 * 64
    assert height_divisor(types.SimpleNamespace(shape={"data": 2, "fsdp": 1}), natjax.NatConfig()) == 1
    with pytest.raises(ValueError, match=r"multiple of 2 groups of devices that share images; got 3"):
        check_batch(mesh, 3)


@pytest.fixture(scope="module")
def reports():
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_agree(reports, case):
    losses = reports["data=1,accumulate=2" if "accumulate" in case else "data=1"]["losses"]
    assert len(losses) == 20
    assert reports[case]["losses"] == pytest.approx(losses, abs=1e-5)
    assert sum(losses[10:]) < sum(losses[:10])  # single ones go up and down with the shares that are mixed


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != SPATIAL])
def test_collectives(reports, case):
    found, split = reports[case]["collectives"], reports[case]["split"]
    summed = reports[case]["parameters"] + 1  # gradients and the loss; one more would be a sum that nobody asked for
    if case.startswith("data=1"):
        assert found == {}
    elif split == 0:
        assert found == {"all-reduce": [summed]}  # all at once, so after the last gradient
    else:
        assert found.keys() == {"all-gather", "all-reduce"}
        assert found["all-gather"] == [1] * split  # each once
        # Squares of what is split, too: for the metrics and for clipping. The compiler groups them as it likes.
        assert sum(found["all-reduce"]) == summed + 2 * split


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_attention_sums_the_gradients_of_its_biases_alone(reports, case):
    biases = reports[case]["biases"]
    assert biases == 2
    found = [kind for kind in reports[case]["in attention"] if kind != "collective-permute" or case != SPATIAL]
    assert found == ([] if case.startswith("data=1") or "accumulate" in case else ["all-reduce"] * biases)


@pytest.mark.slow
def test_micro_batches_sum_no_gradients(reports):
    loss, pooled = 1, 2 * 64  # of a group's two images of a micro-batch, whose rows are split
    assert reports[ACCUMULATED]["summed in loops"] == [loss]
    assert reports[SPATIAL]["summed in loops"] == [loss, pooled]


@pytest.mark.slow
def test_images_split_along_their_height_exchange_halos(reports):
    found, split = reports[SPATIAL]["collectives"], reports[SPATIAL]["split"]
    assert found.keys() == {"all-gather", "all-reduce", "collective-permute"}
    assert found["all-gather"] == [1] * split  # of parameters alone


@pytest.mark.slow
def test_evaluation_of_a_height_that_levels_cannot_split(reports):
    """24 rows over two devices, at 8 pixels per token of the last level."""
    expected = reports["data=1"]["logits"]
    np.testing.assert_allclose(reports["data=2,space=2"]["logits"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_parameters_are_split(reports):
    assert reports["data=8"]["split"] == 0
    assert reports["data=2,fsdp=4"]["split"] > 3
    assert reports["data=2,fsdp=4"]["moments split"] == 2 * reports["data=2,fsdp=4"]["split"]


def main() -> None:
    import collections
    import math
    import re

    import jax.numpy as jnp
    from flax import nnx

    from natjax_train import mesh as meshes
    from natjax_train import step
    from natjax_train.recipe import override
    from natjax_train.recipes import RECIPES

    config = natjax.NatConfig(
        num_channels=1, embed_dim=32, depths=(1, 1), num_heads=(1, 2), kernel_size=3, num_labels=4, drop_path_rate=0.2
    )
    changes = {"batch_size": "16", "base_batch_size": "16", "warmup_epochs": "0", "epochs": "4"}
    everything = {"mixup": "0.8", "cutmix": "1", "erasing": "0.25", "label_smoothing": "0.1"}
    base = override(RECIPES["digits"], {**changes, **everything})
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (20, 16))
    images = (rng.integers(0, 90, (20, 16, 32, 32, 1)) + 40 * labels[..., None, None, None]).astype(np.uint8)

    def summed_in_loops(program):
        """Returns the sizes of the arrays that bodies of loops sum over devices."""
        bodies = set(re.findall(r"body=(%[\w.-]+)", program))
        computations = (part for part in program.split("\n\n") if part.partition(" ")[0] in bodies)
        sums = re.findall(r"= (.*) all-reduce(?:-start)?\(", "\n".join(computations))
        shapes = re.findall(r"\w\[([\d,]*)\]", " ".join(sums))
        return sorted(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes)

    def split(tree):
        return sum(any(leaf.sharding.spec) for leaf in jax.tree.leaves(tree))

    reports = collections.defaultdict(dict)
    for case in CASES:
        text, _, accumulate = case.partition(",accumulate=")
        # Affine warps take pixels from anywhere in an image.
        recipe = override(
            base, {"mesh": text, "accumulate": accumulate, "affine": "0"} if accumulate else {"mesh": text}
        )
        mesh = meshes.make_mesh(text)
        meshes.check_batch(mesh, recipe.batch_size, recipe.accumulate)
        with jax.set_mesh(mesh):
            graphdef, _, params = step.split_model(natjax.NatForImageClassification(config, rngs=nnx.Rngs(0)))
            training = step.make_training(config, graphdef, params, Classification(recipe, range(4)), recipe, 20)
            state = training.init(params)
            state = jax.device_put(state, meshes.state_shardings(mesh, state))
            batches = [
                meshes.put_batch(mesh, {"image": image, "label": label.astype(np.int32)})
                for image, label in zip(images, labels, strict=True)
            ]
            compiled = training.step.lower(state, batches[0]).compile()
            ops = re.findall(
                r"= (.*?)[ )](all-[a-z]+|reduce-scatter|collective-[a-z]+)(?:-start)?\((.*)", compiled.as_text()
            )
            collectives = collections.defaultdict(list)  # of each operation, how many arrays
            in_attention = []
            for arrays, kind, rest in ops:
                collectives[kind].append(len(re.findall(r"\w+\[[\d,]*\]", arrays)))
                # XLA makes one operation of several, whose names it then joins.
                in_attention += [kind for name in rest.split(":") if "neighborhood_attention" in name]
            report = {
                "collectives": {kind: sorted(counts, reverse=True) for kind, counts in collectives.items()},
                "in attention": in_attention,
                "parameters": len(jax.tree.leaves(params)),
                "summed in loops": summed_in_loops(compiled.as_text()),
                "biases": sum("rpb" in str(path[-1]) for path, _ in jax.tree.leaves_with_path(params)),
                "split": split(state.params),
                "moments split": split(state.opt_state),
                "losses": [],
            }
            for batch in batches:
                state, metrics = compiled(state, batch)
                report["losses"].append(float(metrics["loss"]))
            assert split(state.params) == report["split"]
            assert jnp.isfinite(metrics["grad_norms"]).all()
        reports[case] = report
    for text in ("data=1", "data=2,space=2"):
        mesh = meshes.make_mesh(text)
        with jax.set_mesh(mesh):
            _, graphdef, params = step.split_model(natjax.NatForImageClassification(config, rngs=nnx.Rngs(0)))
            apply = step.make_eval_step(graphdef, Classification(None, range(4)))
            placed = meshes.put_batch(mesh, {"image": images[0, :, :24] / np.float32(255)})["image"]
            reports[text]["logits"] = np.asarray(apply(params, placed)).tolist()
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
