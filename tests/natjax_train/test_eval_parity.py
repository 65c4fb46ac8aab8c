"""`natjax eval` beside a PyTorch loop over the same images with transformers' own NAT and image processor."""

import json
import pathlib
import shutil
import sys

import numpy as np
import PIL.Image
import pytest

import natjax
from natjax.cli import main

torch = pytest.importorskip("torch", reason="PyTorch parity is checked on Python 3.11")
pytest.importorskip("transformers")
TESTS = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

CLASSES = [f"LABEL_{i}" for i in range(9)]


@pytest.fixture
def model(tmp_path):
    """The golden NAT with a larger and louder classifier, and an image processor of 64 pixels."""
    directory = shutil.copytree(TESTS / "goldens" / "hf_nat", tmp_path / "model")
    (directory / "model.safetensors").unlink()
    config = json.loads((directory / "config.json").read_text())
    config |= {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    (directory / "config.json").write_text(json.dumps(config))
    weights = torch.load(directory / "pytorch_model.bin", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("classifier.weight", (9, 64)), ("classifier.bias", (9,))):
        weights[name] = torch.randn(shape, generator=generator)
    torch.save(weights, directory / "pytorch_model.bin")
    natjax.NatImageProcessor(size=64, resample=3, image_mean=(0.4, 0.5, 0.6)).save_pretrained(directory)
    return directory


@pytest.fixture
def data(tmp_path):
    """38 images of several sizes: a last batch of 6 with batches of 16."""
    rng = np.random.default_rng(0)
    for i in range(38):
        folder = tmp_path / "data" / "val" / CLASSES[i % 9]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (*rng.integers(3, 9, 2), 3), np.uint8)
        image = PIL.Image.fromarray(coarse).resize(tuple(rng.integers(50, 90, 2).tolist()))
        image.save(folder / f"{i:02d}.png")
    return tmp_path / "data"


@pytest.mark.filterwarnings("ignore")  # transformers 4.40.2's own
def test_same_numbers_as_a_torch_loop(capsys, model, data):
    import natten_oracle

    natten_oracle.install()
    from transformers import NatForImageClassification, ViTImageProcessor

    theirs = NatForImageClassification.from_pretrained(model).eval()
    processor = ViTImageProcessor.from_pretrained(model)
    loss, top1, top5, count = 0.0, 0, 0, 0
    for label, name in enumerate(CLASSES):
        for path in sorted((data / "val" / name).iterdir()):
            with torch.no_grad():
                pixels = processor(PIL.Image.open(path).convert("RGB"), return_tensors="pt").pixel_values
                logits = theirs(pixels).logits
            loss += torch.nn.functional.cross_entropy(logits, torch.tensor([label])).item()
            best = logits[0].topk(5).indices.tolist()
            top1, top5 = top1 + (label == best[0]), top5 + (label in best)
            count += 1
    assert 0 < top1 < top5 < count  # else nothing is told apart

    code = main(["eval", "--data", str(data), "--model", str(model), "--json", "--batch-size", "16"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["top1"] == top1 / count
    assert found["top5"] == top5 / count
    assert found["loss"] == pytest.approx(loss / count, rel=1e-5)
