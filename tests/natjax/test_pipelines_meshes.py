"""Images split over devices, by pipelines and on the command line: results are those of one device.

A script that a process with eight devices runs.
"""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.nnx

SCRIPT = """
import contextlib, io, json, os, sys
import jax, numpy as np, PIL.Image, pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
import natjax
from natjax import pipelines
from natjax.segmentation import inference
from natjax.cli import main

config = natjax.NatConfig(embed_dim=16, depths=(1, 1), num_heads=(1, 2), kernel_size=3, mlp_ratio=1.0, num_labels=3)
natjax.NatForImageClassification(config, rngs=nnx.Rngs(0)).save_pretrained("classifier")
backbone = config.replace(out_features=("stage1", "stage2"))
heads = natjax.UperNetConfig(
    backbone_config=backbone, hidden_size=8, pool_scales=(1, 2), use_auxiliary_head=False, num_labels=3
)
natjax.UperNetForSemanticSegmentation(heads, rngs=nnx.Rngs(1)).save_pretrained("segmenter")
for name in ("classifier", "segmenter"):
    natjax.NatImageProcessor(size=64, image_mean=(0.5,) * 3).save_pretrained(name)
rng = np.random.default_rng(0)
for name, shape in {"odd": (99, 30), "even": (128, 32)}.items():
    PIL.Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(f"{name}.tif")

def run(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*arguments, "--debug"])
    return code, out.getvalue()

mesh = ("--full-size", "--mesh", "space=8")
both = [run("classify", "odd.tif", "even.tif", "--model", "classifier", "--json", *more)[1] for more in (mesh[:1], mesh)]
for a, b in zip(*(json.loads(text)["results"] for text in both), strict=True):
    for ours, theirs in zip(a["predictions"], b["predictions"], strict=True):
        assert ours["label"] == theirs["label"]
        np.testing.assert_allclose(ours["probability"], theirs["probability"], rtol=1e-5)

for out, more in (("alone.npz", mesh[:1]), ("split.npz", mesh)):
    assert run("features", "odd.tif", "--model", "classifier", "--stages", "all", "--out", out, *more)[0] == 0
with np.load("alone.npz") as alone, np.load("split.npz") as split:
    assert split["stage1"].shape == (1, 25, 8, 16)  # of 99 x 30 pixels, not of those that they are padded to
    for name in ("stem", "stage1", "stage2"):
        np.testing.assert_allclose(alone[name], split[name], rtol=1e-4, atol=1e-5)

sharding = NamedSharding(jax.make_mesh((4, 2), ("rows", "columns")), P(None, "rows", "columns"))
pooled = [
    natjax.pipeline("image-feature-extraction", "classifier", full_size=True, sharding=s)("odd.tif") for s in (None, sharding)
]
np.testing.assert_allclose(*pooled, rtol=1e-4, atol=1e-5)

for out, more in (("alone", mesh[:1]), ("split", mesh)):
    assert run("segment", "odd.tif", "even.tif", "--model", "segmenter", "--out", out, *more)[0] == 0
for name in ("odd", "even"):
    maps = [np.asarray(PIL.Image.open(f"{out}/{name}.png")) for out in ("alone", "split")]
    assert len(np.unique(maps[0])) > 1
    np.testing.assert_array_equal(*maps)

lying, by_part = [], inference.classes_by_part
def classes_by_part(*arguments):
    found = by_part(*arguments)
    lying.append([shard.data.shape[1] for shard in found.addressable_shards])
    return found
inference.classes_by_part = classes_by_part
maps = [
    natjax.pipeline("image-segmentation", "segmenter", full_size=True, sharding=s, flip=True).class_maps("odd.tif")
    for s in (None, sharding)
]
np.testing.assert_array_equal(*maps)
assert lying == [[32] * 8]  # 4 x 32 rows, of which the image has 99

with pytest.raises(ValueError, match="may be split by height and width"):
    natjax.pipeline("image-classification", "classifier", sharding=NamedSharding(sharding.mesh, P("rows")))
with pytest.raises(ValueError, match="windows of images fit one device"):
    natjax.pipeline("image-segmentation", "segmenter", crop_size=64, sharding=sharding)
"""


def test_results_are_those_of_one_device(tmp_path):
    more = {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | more, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-6000:]
