"""Writes photographs with handwritten digits on them, and COCO's JSON of their boxes and masks. For docs/digits.md.

    pip install --no-deps scikit-image
    python examples/digits.py digits-boxes

The digits are scikit-learn's (E. Alpaydin and C. Kaynak, 1998; 8 x 8 pixels), the photographs those that scikit-learn and
scikit-image come with. Each digit gets a colour, a size, a rotation and a place; one that is drawn later hides what is beneath
it. So masks and boxes are exact: those of the pixels that can be seen. Digits and photographs to validate with are others than
those to train on.
"""

import argparse
import importlib.util
import json
import math
import pathlib
from collections.abc import Iterator

import numpy as np
from faster_coco_eval import mask as coco_masks
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 128  # of an image, in pixels
MOST = 6  # digits of an image
SIDES = (28, 72)  # of a digit's 8 x 8 pixels on an image
ROTATION = 25  # degrees, to either side
VISIBLE = 0.75  # part of a digit's pixels, at least, that no other digit hides
CONTRAST = 100  # between a digit's colour and the mean of what is beneath it, of 255 * sqrt(3)
PHOTOGRAPHS = {
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/chelsea.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/rocket.jpg",
        "sklearn/datasets/images/flower.jpg",
    ),
    "val": ("skimage/data/coffee.png", "sklearn/datasets/images/china.jpg"),
}


def photograph(path: str) -> Image.Image:
    """Returns a photograph, which is read without importing the package that it comes with."""
    package, _, file = path.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"There is no {package}: pip install --no-deps scikit-image")
    return Image.open(pathlib.Path(found.submodule_search_locations[0]) / file).convert("RGB")


def handwritten(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns digits, 0 to 1, [N, 8, 8], and their classes [N]: of 1797, a fifth is to validate with."""
    digits = load_digits()
    split = train_test_split(digits.images / 16, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    return (split[0], split[2]) if part == "train" else (split[1], split[3])


def background(photographs: list[Image.Image], rng: np.random.Generator) -> np.ndarray:
    """Returns a random square of a random photograph, uint8 [SIDE, SIDE, 3]."""
    image = photographs[rng.integers(len(photographs))]
    side = int(rng.integers(SIDE, min(image.size) + 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    square = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return np.asarray(square)[:, :: rng.choice((-1, 1))]


def drawn(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns how much of each pixel is ink, 0 to 1, of a digit in a random size, rotation and place, [SIDE, SIDE]."""
    side = math.exp(rng.uniform(*map(math.log, SIDES)))
    angle = math.radians(rng.uniform(-ROTATION, ROTATION))
    centre = rng.uniform(side / 2, SIDE - side / 2, 2)
    cosine, sine = math.cos(angle) * 8 / side, math.sin(angle) * 8 / side  # from the image's pixels to the digit's
    shift = 4 - np.array([[cosine, sine], [-sine, cosine]]) @ centre
    image = Image.fromarray(np.pad(digit, 2).astype(np.float32))
    matrix = (cosine, sine, shift[0] + 2, -sine, cosine, shift[1] + 2)
    smooth = image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.clip((np.asarray(smooth) - 0.5) * side / 8 + 0.5, 0, 1)  # an edge is about a pixel wide


def composed(
    digits: Iterator[tuple[np.ndarray, int]], photographs: list[Image.Image], rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Returns an image, uint8 [SIDE, SIDE, 3], and class and visible pixels, bool [SIDE, SIDE], of its digits."""
    pixels = background(photographs, rng).astype(np.float64)
    objects: list[tuple[int, np.ndarray, int]] = []  # with the number of pixels before any is hidden
    for _ in range(rng.integers(1, MOST + 1)):
        digit, label = next(digits)
        for _ in range(20):  # else there is no room for this one
            ink = drawn(digit, rng)
            mask, colour = ink >= 0.5, rng.uniform(0, 255, 3)
            hides_little = all((seen & ~mask).sum() >= VISIBLE * whole for _, seen, whole in objects)
            if hides_little and np.linalg.norm(pixels[mask].mean(0) - colour) >= CONTRAST:
                pixels += ink[..., None] * (colour - pixels)
                objects = [(name, seen & ~mask, whole) for name, seen, whole in objects]
                objects.append((label, mask, int(mask.sum())))
                break
    return np.rint(pixels).astype(np.uint8), [(label, seen) for label, seen, _ in objects]


def write(folder: pathlib.Path, part: str, count: int, photographs: list[Image.Image]) -> int:
    """Writes the images of a part and their annotations; returns how many digits there are."""
    rng = np.random.default_rng(list(PHOTOGRAPHS).index(part))
    glyphs, labels = handwritten(part)

    def shuffled() -> Iterator[tuple[np.ndarray, int]]:
        while True:
            for number in rng.permutation(len(glyphs)):
                yield glyphs[number], int(labels[number])

    digits, images, annotations = shuffled(), [], []
    (folder / "images" / part).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for image_id in range(1, count + 1):
        pixels, objects = composed(digits, photographs, rng)
        name = f"{image_id:04}.png"
        Image.fromarray(pixels).save(folder / "images" / part / name)
        images.append({"id": image_id, "file_name": name, "height": SIDE, "width": SIDE})
        for label, mask in objects:
            rle = coco_masks.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": coco_masks.toBbox(rle).tolist(),
                    "area": int(mask.sum()),
                    "segmentation": {"size": [SIDE, SIDE], "counts": rle["counts"].decode()},
                    "iscrowd": 0,
                }
            )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in range(10)],
    }
    (folder / "annotations" / f"{part}.json").write_text(json.dumps(document), encoding="utf-8")
    return len(annotations)


def main() -> None:
    """Writes the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--train", type=int, default=1200, metavar="N", help="images to train on (default: 1200)")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="images to validate with (default: 200)")
    arguments = parser.parse_args()

    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} exists: choose another folder, so that no older images are in it.")
    photographs = {part: [photograph(path) for path in paths] for part, paths in PHOTOGRAPHS.items()}
    for part, count in (("train", arguments.train), ("val", arguments.val)):
        digits = write(arguments.out, part, count, photographs[part])
        print(f"{arguments.out}: {count} images of {part} with {digits} digits.")


if __name__ == "__main__":
    main()
