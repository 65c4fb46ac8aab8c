"""Images through a model in batches of one shape, shared by `classify` and `features`.

Images that cannot be read are named on stderr and skipped; the others go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.cli._arguments import positive_int
from natjax.cli._output import Progress, complain
from natjax.errors import CheckpointError, ImageError

if TYPE_CHECKING:
    import numpy as np

    from natjax.image_processing import NatImageProcessor

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2"}


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which images go through which model."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--model",
        metavar="M",
        help="checkpoint: a folder, a file or a Hugging Face id (default: a small digit classifier)",
    )
    parser.add_argument("--config", metavar="NAME|FILE", help="the model's architecture, where M has no config.json")
    parser.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="images per step (default: 8)")


def find_checkpoint(model: str | None) -> Path:
    """Returns where the checkpoint to use is: the one named, or the demonstration's, with a word about it on stderr."""
    if model is None:
        from natjax import demo

        complain("no --model given: using the built-in classifier of handwritten digits")
        return Path(demo.MODEL_DIR)
    from natjax.hub import locate

    return locate(model)


def load_processor(model: Path, num_channels: int) -> NatImageProcessor:
    """Returns the image processor that lies next to a checkpoint, or ImageNet's where none does."""
    from natjax.image_processing import PROCESSOR_NAME, NatImageProcessor

    folder = model if model.is_dir() else model.parent
    if (folder / PROCESSOR_NAME).exists():
        processor = NatImageProcessor.from_pretrained(folder)
    else:
        complain(f"{model} comes without a {PROCESSOR_NAME}: preparing images as for ImageNet (224 pixels, crop 0.875)")
        processor = NatImageProcessor.imagenet(num_channels=num_channels)
    if processor.num_channels != num_channels:
        raise CheckpointError(
            f"{model}: the model takes {num_channels} channel(s), its {PROCESSOR_NAME} makes {processor.num_channels}; "
            "image_mean and image_std decide that, with one entry per channel."
        )
    return processor


def find_images(arguments: Sequence[str]) -> list[str]:
    """Returns the files that arguments mean: files as they are, folders and patterns as their images in order."""
    paths: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):
            inside = sorted(p for p in Path(argument).iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())
            paths += map(str, inside or [argument])  # an empty folder gets named like any other unreadable image
        elif glob.has_magic(argument) and not os.path.exists(argument):
            paths += sorted(glob.glob(argument)) or [argument]  # Windows leaves patterns to the command
        else:
            paths.append(argument)
    return paths


@dataclasses.dataclass
class Run:
    """Images on their way through a model: iterate for (path, output) pairs; `skipped` then lists (path, reason).

    `forward` maps `[B, H, W, C]` to a pytree of arrays `[B, ...]`; an output is that pytree for one image. Batches are
    padded to one size, so that `forward` compiles once per image shape.
    """

    paths: list[str]
    processor: NatImageProcessor
    forward: Callable[[np.ndarray], Any]
    batch_size: int
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        progress = Progress(len(self.paths), "images")
        done = 0
        try:
            for batch in self._batches(progress):
                yield from self._outputs(batch)
                done += len(batch)
                progress.update(done + len(self.skipped))
        finally:
            progress.clear()

    def _batches(self, progress: Progress) -> Iterator[list[tuple[str, np.ndarray]]]:
        batch: list[tuple[str, np.ndarray]] = []
        for path in self.paths:
            try:
                pixels = self.processor(path)
            except ImageError as error:
                self.skipped.append((path, str(error)))
                progress.clear()
                complain(f"skipped {error}")
                continue
            if batch and (len(batch) == self.batch_size or batch[0][1].shape != pixels.shape):
                yield batch
                batch = []
            batch.append((path, pixels))
        if batch:
            yield batch

    def _outputs(self, batch: list[tuple[str, np.ndarray]]) -> Iterator[tuple[str, Any]]:
        import jax
        import numpy as np

        pixels = np.concatenate([image for _, image in batch])
        missing = min(self.batch_size, len(self.paths)) - len(batch)
        pixels = np.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)])
        outputs = jax.device_get(self.forward(pixels))
        for i, (path, _) in enumerate(batch):
            yield path, jax.tree.map(lambda array, i=i: np.asarray(array[i], np.float32), outputs)


def compiled(model: Any, select: Callable[[Any], Any]) -> Callable[[np.ndarray], Any]:
    """Returns a jitted function from pixels to `select(model(pixels))`."""
    import jax
    from flax import nnx

    from natjax.nn.xla import compiler_options

    graphdef, state = nnx.split(model)
    options = compiler_options()
    forward = jax.jit(lambda state, pixels: select(nnx.merge(graphdef, state)(pixels)), compiler_options=options)
    return lambda pixels: forward(state, pixels)
