"""What the tests share: no implicit promotion of dtypes, and a fake model for the command line."""

import functools
import pathlib
import sys

import jax
import PIL.Image
import pytest

from natjax import models
from natjax.image_processing import NatImageProcessor
from natjax_convert import Checkpoint

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for fake_model

from fake_model import CONFIG, FakeModel


@pytest.fixture(autouse=True)
def strict_promotion():
    """A float32 that slips into a bfloat16 model is an error here instead of a slower model."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Puts the fake in place of natjax's models and returns a folder of images and a checkpoint `model`."""
    for name in ("NatForImageClassification", "NatModel", "NatBackbone"):
        monkeypatch.setattr(models, name, FakeModel)
    opened = functools.partial(Checkpoint, tensors={}, found=None, config=CONFIG)
    monkeypatch.setattr(Checkpoint, "open", lambda path, **_: opened(path))
    monkeypatch.setattr(FakeModel, "config", CONFIG, raising=False)
    NatImageProcessor(size=8).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "images").mkdir()
    for i in range(5):
        PIL.Image.new("RGB", (20 + i, 20), (60 * i,) * 3).save(tmp_path / "images" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path
