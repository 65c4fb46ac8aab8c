"""JPEG files that cost what photographs cost to decode."""

import io
import pathlib

import numpy as np
import PIL.Image

SIDES = (500, 375)  # as large as ImageNet's on average


def write_images(folder: pathlib.Path, count: int, classes: int) -> int:
    """Writes so many files as long as ImageNet's, some 100 KB, into class0/, class1/ ...: smooth shapes under grain.

    Returns their mean size in bytes.
    """
    rng, total = np.random.default_rng(0), 0
    for i in range(count):
        small = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        shapes = np.asarray(small.resize(SIDES, PIL.Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(shapes + rng.normal(0, 12, shapes.shape[:2])[..., None], 0, 255).astype(np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=90)
        path = folder / f"class{i % classes}" / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        total += path.write_bytes(file.getvalue())
    return total // count
