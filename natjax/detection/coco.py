"""Detections as COCO's results: boxes as x, y, width, height, and masks as run lengths in COCO's text of them.

A mask's pixels are counted column after column: so many 0, so many 1, and so on, beginning with those of 0, of which there may be
none. From the fourth on, a count is written as its difference to the last but one. A number is written from its lowest bits
on, five to a character, in two's complement: a sixth bit says that more of them follow. 48 is added, which makes it ASCII.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def results(detections: Detections, ids: Sequence[int], image_id: int) -> list[dict[str, Any]]:
    """Returns what an image shows as COCO's results, which are written as JSON.

    Args:
        detections: of the image.
        ids: COCO's numbers of the model's classes, see `category_ids`.
        image_id: COCO's number of the image.
    """
    found = []
    for index, (box, score, label) in enumerate(
        zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    ):
        left, top, right, bottom = box
        result: dict[str, Any] = {"image_id": image_id, "category_id": ids[label]}
        result |= {"bbox": [left, top, right - left, bottom - top], "score": score}
        if detections.mask_probabilities is not None:
            result["segmentation"] = run_lengths(*detections.mask_part(index), detections.size)
        found.append(result)
    return found


def run_lengths(
    part: Bool[np.ndarray, "h w"], corner: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Returns a mask as COCO writes it: {"size": [height, width], "counts": text}.

    Args:
        part: of the mask; pixels beside it are 0.
        corner: (top, left) of the part in the mask.
        size: (height, width) of the mask; by default the part is all of it.
    """
    (top, left), (height, width) = corner, size or part.shape
    columns = np.pad(part, ((1, 1), (0, 0))).T
    column, row = np.divmod(np.flatnonzero(np.diff(columns.ravel())), columns.shape[1])
    edges = (left + column) * height + top + row  # where pixels of 1 begin, end, begin, ...
    # No edge is where an end at the bottom of a column meets a beginning at the top of the next one.
    edges = edges[(np.diff(edges, prepend=-1) != 0) & (np.diff(edges, append=-1) != 0)]
    counts = np.diff(edges, prepend=0, append=height * width)
    return {"size": [height, width], "counts": _text(counts if counts[-1] else counts[:-1])}


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
    # Each of them first: a sum of 64 bits may begin again at 0.
    return numbers.tolist() if 0 <= numbers.min() <= numbers.max() <= pixels == numbers.sum() else None


def _text(counts: Int[np.ndarray, "N"]) -> str:
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    shifted = numbers[:, None] >> _BITS * np.arange(_MOST_CHARACTERS)
    bits = shifted & (_MORE - 1)
    more = shifted >> _BITS != np.where(bits & _SIGN, -1, 0)
    written = np.pad(more[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return (_FIRST + bits + _MORE * more)[written].astype(np.uint8).tobytes().decode("ascii")
