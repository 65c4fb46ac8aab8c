"""The demonstration: an embedded PyTorch checkpoint is converted, classifies ten digits and is held against PyTorch.

The model and the images, and where they come from: README.md beside this file. Nothing here needs a network.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

import natjax_convert
from natjax.demo.picture import draw
from natjax.errors import CheckpointError
from natjax.hub import DIGITS
from natjax.image_processing import NatImageProcessor
from natjax.models import NatForImageClassification
from natjax.nn.xla import compiler_options

if TYPE_CHECKING:
    from jaxtyping import Float

MODEL_DIR = DIGITS
TOLERANCE = 2e-5  # of float32 logits of this model: they reach about 10
INSPECTED = 5  # the sample whose attention is drawn ...
QUERIES = ((7, 8), (0, 9))  # ... at these tokens (row, column): inside the map and at its border

_BAR = 20
_REPEATS = 20


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample image and what is known about it.

    Attributes:
        path: of the image.
        label: what it is.
        logits: PyTorch's.
    """

    path: Path
    label: str
    logits: Float[np.ndarray, "10"]


def run(out_dir: str | os.PathLike, *, model_dir: str | os.PathLike = MODEL_DIR) -> int:
    """Runs the demonstration and prints what it finds.

    Args:
        out_dir: folder for the converted model and demo.png; made where it is missing.
        model_dir: the checkpoint with its samples.

    Returns:
        0, or 1 where the logits are not PyTorch's.

    Raises:
        natjax.CheckpointError: the folder cannot be written, or the samples cannot be read.
    """
    start, out_dir, model_dir = time.perf_counter(), Path(out_dir), Path(model_dir)
    samples = read_samples(model_dir)
    report = natjax_convert.convert(model_dir, out_dir / "model", overwrite=True)
    print(
        f"Converted a PyTorch checkpoint, without PyTorch: {report.tensors} tensors, {report.parameters:,} parameters"
    )
    print(f"  from {model_dir / 'pytorch_model.bin'}")
    print(f"  to   {out_dir / 'model'}  ({report.seconds:.2f} s)\n")

    model = NatForImageClassification.from_pretrained(out_dir / "model")
    pixel_values = NatImageProcessor.from_pretrained(out_dir / "model")([sample.path for sample in samples])
    graphdef, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnames="output_attentions", compiler_options=compiler_options())
    def forward(state, x, output_attentions=False):
        return nnx.merge(graphdef, state)(x, output_attentions=output_attentions)

    logits = np.asarray(forward(state, pixel_values).logits)
    first = time.perf_counter() - start
    each = _seconds(lambda: forward(state, pixel_values).logits) / len(samples)

    probabilities = np.asarray(jax.nn.softmax(logits))
    names = model.config.id2label or {}
    _print_predictions(samples, probabilities, names)
    difference = float(np.max(np.abs(logits - np.stack([sample.logits for sample in samples]))))
    same = difference <= TOLERANCE  # not so for NaN
    print(
        f"max |logits - PyTorch's| = {difference:.1e} (tolerance {TOLERANCE:.0e}): {'the same' if same else 'DIFFERENT'}"
    )
    print(f"{first:.1f} s to the first logits, compilation included; then {each * 1e3:.2f} ms per image on {_device()}")

    attentions = forward(state, pixel_values[[INSPECTED]], output_attentions=True).attentions
    picture = out_dir / "demo.png"
    draw(
        [
            (sample.path, sample.label, names[int(np.argmax(p))], float(np.max(p)))
            for sample, p in zip(samples, probabilities, strict=True)
        ],
        inspected=INSPECTED,
        weights=np.asarray(attentions[0][0]).mean(axis=0),  # first level, mean over heads: [H, W, K*K]
        kernel_size=model.config.kernel_size,
        queries=QUERIES,
        caption=f"Logits within {difference:.1e} of PyTorch's. {each * 1e3:.2f} ms per image on {_device()}.",
    ).save(picture)
    print(f"Picture: {picture}")
    return 0 if same else 1


def read_samples(model_dir: Path) -> list[Sample]:
    """Reads the samples beside a checkpoint.

    Raises:
        natjax.CheckpointError: there are none, or they are damaged.
    """
    path = model_dir / "reference.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["samples"]
        return [Sample(model_dir / e["image"], e["label"], np.asarray(e["logits"], np.float32)) for e in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable list of samples: {error!r}.") from error


def _print_predictions(samples: list[Sample], probabilities: Any, names: Any) -> None:
    print(f"{'image':<14}{'label':<7}{'prediction':<12}{'probability':<{_BAR + 9}}next best")
    for sample, p in zip(samples, probabilities, strict=True):
        best, second = np.argsort(-p, kind="stable")[:2]
        bar = "#" * round(_BAR * float(p[best]))
        print(
            f"{sample.path.name:<14}{sample.label:<7}{names[int(best)]:<12}{p[best]:6.1%} {bar:<{_BAR + 2}}"
            f"{names[int(second)]} {p[second]:6.1%}"
        )
    right = sum(sample.label == names[int(np.argmax(p))] for sample, p in zip(samples, probabilities, strict=True))
    print(f"\n{right} of {len(samples)} right.")


def _seconds(call: Any) -> float:
    """Returns the median time of a call."""
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _device() -> str:
    device = jax.devices()[0]
    return "the CPU" if device.platform == "cpu" else device.device_kind
