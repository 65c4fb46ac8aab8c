"""Turns a run of the `digits` recipe into what `natjax demo` embeds; needs PyTorch and transformers 4.40.2 (Python 3.11).

    natjax train --recipe digits --data digits --out runs/digits
    python examples/export_digits.py runs/digits/model

Writes natjax/demo/digits: the weights as PyTorch's `torch.save` writes them, the first held-out image of every class, and their
logits from transformers' own NAT.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys

import PIL.Image
import torch

import natjax
from natjax_train.data import Digits

ROOT = pathlib.Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "natjax" / "demo" / "digits"


def export(trained: pathlib.Path) -> None:
    """Writes the demonstration's folder from a trained model; logits are those of PyTorch and transformers alone."""
    sys.path.insert(0, str(ROOT / "tests"))
    import natten_oracle

    natten_oracle.install()
    import transformers

    EMBEDDED.mkdir(exist_ok=True)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(trained / name, EMBEDDED / name)
    model = transformers.NatForImageClassification.from_pretrained(trained).eval()
    torch.save(model.state_dict(), EMBEDDED / "pytorch_model.bin")

    held_out = Digits("val")
    labels = [held_out[i]["label"] for i in range(len(held_out))]
    images = [PIL.Image.fromarray(held_out[labels.index(digit)]["image"][..., 0]) for digit in range(10)]
    processor = natjax.NatImageProcessor.from_pretrained(trained)
    with torch.no_grad():
        logits = model(torch.tensor(processor(images).transpose(0, 3, 1, 2))).logits
    samples = []
    for digit, (image, row) in enumerate(zip(images, logits, strict=True)):
        name = f"digit_{digit}.png"
        image.save(EMBEDDED / name, optimize=True)
        samples.append({"image": name, "label": str(digit), "logits": row.tolist()})
    reference = {"model": f"transformers {transformers.__version__}, torch {torch.__version__}", "samples": samples}
    (EMBEDDED / "reference.json").write_text(json.dumps(reference, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Exports a trained model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=pathlib.Path, help="folder of the trained model")
    export(parser.parse_args().model)


if __name__ == "__main__":
    main()
