"""Detections as COCO's results: boxes as x, y, width, height, and masks as run lengths in COCO's text of them.

A mask's pixels are counted column after column: so many 0, so many 1, and so on, beginning with those of 0, of which there may be
none. From the fourth on, a count is written as its difference to the last but one. A number is written from its lowest bits
on, five to a character, in two's complement: a sixth bit says that more of them follow. 48 is added, which makes it ASCII.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from natjax.labels import coco

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from natjax.detection.inference import Detections

# Of COCO's 91 numbers of categories, its boxes have 80.
_WITHOUT_BOXES = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
CATEGORY_IDS = tuple(number for number in range(1, 92) if number not in _WITHOUT_BOXES)
_BITS, _MORE, _SIGN, _FIRST = 5, 0x20, 0x10, 48
_MOST_CHARACTERS = 7  # of a number below 2^31 and its sign


def category_ids(names: Mapping[int, str]) -> list[int]:
    """Returns COCO's numbers of a model's classes: 1 to 90 where they are COCO's 80, else their indices."""
    in_order = [names[index] for index in range(len(names))]
    return list(CATEGORY_IDS) if in_order == list(coco()) else list(range(len(names)))


def results(detections: Detections, names: Mapping[int, str], image_id: int) -> list[dict[str, Any]]:
    """Returns what an image shows as COCO's results, which are written as JSON.

    Args:
        detections: of the image.
        names: of the model's classes.
        image_id: COCO's number of the image.
    """
    ids = category_ids(names)
    found = []
    for index, (box, score, label) in enumerate(
        zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    ):
        left, top, right, bottom = box
        result: dict[str, Any] = {"image_id": image_id, "category_id": ids[label]}
        result |= {"bbox": [left, top, right - left, bottom - top], "score": score}
        if detections.mask_probabilities is not None:
            result["segmentation"] = run_lengths(detections.mask(index))
        found.append(result)
    return found


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Returns a mask as COCO writes it: {"size": [height, width], "counts": text}."""
    pixels = mask.T.ravel()
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate([[0], starts, [pixels.size]]))
    return {"size": list(mask.shape), "counts": _text(np.concatenate([[0], counts]) if pixels[0] else counts)}


def counts_of(text: str, pixels: int) -> list[int] | None:
    """Returns the run lengths that COCO's text stands for, or None where it does not stand for so many pixels.

    Args:
        text: as `run_lengths` has it.
        pixels: of the mask, less than 2^31.
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - _FIRST
    except UnicodeEncodeError:
        return None
    last = codes & _MORE == 0
    ends = np.flatnonzero(last)
    if not ends.size or not last[-1] or codes.min() < 0 or codes.max() >= 2 * _MORE:
        return None
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _MOST_CHARACTERS:
        return None
    place = np.arange(len(codes)) - np.repeat(ends - lengths + 1, lengths)
    numbers = np.add.reduceat((codes & (_MORE - 1)) << (_BITS * place), ends - lengths + 1)
    numbers -= np.where(codes[ends] & _SIGN, 1 << (_BITS * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers.tolist() if numbers.min() >= 0 and numbers.sum() == pixels else None


def _text(counts: Int[np.ndarray, "N"]) -> str:
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    return "".join(itertools.chain.from_iterable(map(_characters, numbers.tolist())))


def _characters(number: int) -> list[str]:
    characters = []
    while True:
        bits = number & (_MORE - 1)
        number >>= _BITS
        done = number == (-1 if bits & _SIGN else 0)
        characters.append(chr(_FIRST + (bits if done else bits | _MORE)))
        if done:
            return characters
