"""The `digits` recipe by its one command: what it reaches, and what transformers 4.40.2 computes with what it exports.

And the digits on photographs, which `examples/digits.py` writes for the recipe `digits_boxes`.
"""

import importlib.util
import json
import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import natjax
from natjax_train.data import Digits
from natjax_train.data.coco import open_coco
from natjax_train.data.coco_masks import mask_pixels


def train(out, *changes, **variables):
    """Runs the command, with environment variables, and returns its last evaluation."""
    command = [sys.executable, "-m", "natjax", "train", "--recipe", "digits", "--data", "digits", "--out", str(out)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run([*command, *changes], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "top1" in row][-1]


def check_transformers(directory, monkeypatch):
    """Compares natjax's and transformers' logits of held-out digits."""
    import torch

    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[1]))
    import natten_oracle

    natten_oracle.install()
    from transformers import NatForImageClassification

    held_out = Digits("val")
    processor = natjax.NatImageProcessor.from_pretrained(directory)
    pixel_values = processor([held_out[i]["image"] for i in range(16)])
    ours = natjax.NatForImageClassification.from_pretrained(directory)(pixel_values).logits
    theirs, loading = NatForImageClassification.from_pretrained(directory, output_loading_info=True)
    assert not any(loading.values())
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(np.transpose(pixel_values, (0, 3, 1, 2)))).logits
    assert np.ptp(logits.numpy(), axis=1).min() > 0.1  # the images are told apart
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers 4.40.2's own
def test_held_out_digits_are_recognised(tmp_path, monkeypatch):
    """After 8 of the recipe's 60 epochs, which reached 97.2 % when this was written."""
    assert len(Digits("val")) == 360
    assert train(tmp_path, "--epochs=8", "--warmup_epochs=1")["top1"] >= 0.95
    if importlib.util.find_spec("transformers"):
        check_transformers(tmp_path / "model", monkeypatch)


@pytest.mark.filterwarnings("ignore")  # transformers 4.40.2's own
def test_transformers_computes_what_a_run_exports(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch parity is checked on Python 3.11")
    pytest.importorskip("transformers")
    config = {"num_channels": 1, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "kernel_size": 3}
    quick = {"epochs": "0.5", "warmup-epochs": "0", "image-size": "32", "model-config": json.dumps(config)}
    # What is compared is the export; XLA need not take its time over so short a run.
    train(tmp_path, *(f"--{name}={value}" for name, value in quick.items()), JAX_DISABLE_MOST_OPTIMIZATIONS="true")
    check_transformers(tmp_path / "model", monkeypatch)


@pytest.mark.once
def test_masks_of_digits_on_photographs_are_those_of_their_pixels(tmp_path):
    """On a grey photograph, a digit's pixels have its one colour but for those of its edges."""
    write = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "examples/digits.py"))["write"]
    grey = PIL.Image.new("RGB", (150, 130), (128, 128, 128))
    assert write(tmp_path, "val", 12, [grey]) > 20
    source = open_coco(tmp_path, "val")
    assert source.class_names == tuple("0123456789")
    for index in range(len(source)):
        item, image = source[index], np.asarray(PIL.Image.open(tmp_path / "images/val" / f"{index + 1:04}.png"))
        masks = np.stack([mask_pixels(mask) for mask in item["masks"]]).astype(bool)
        assert masks.sum(0).max() <= 1  # a pixel shows one digit
        assert not (masks.any(0) & (image == 128).all(-1)).any()
        for mask, box in zip(masks, item["boxes"], strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            np.testing.assert_array_equal(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            colours, counts = np.unique(image[mask], axis=0, return_counts=True)
            has_colour = (image == colours[counts.argmax()]).all(-1)
            assert counts.max() > 0.6 * counts.sum()
            assert not (has_colour & ~mask).any()
