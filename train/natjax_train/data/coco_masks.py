"""Masks of COCO's annotations, polygons or run lengths, as run lengths in COCO's text of them.

faster-coco-eval, as pycocotools, takes a polygon of two points for a box, walks along sides of polygons pixel by pixel however
far they lead, and does not say which annotation has damaged run lengths: all of it is checked before.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from natjax.detection.coco import counts_of
from natjax.errors import install_line

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8


class AnnotationError(ValueError):
    """Something in an annotation is wrong.

    Attributes:
        kind: what, as in "3 annotations with a damaged mask".
        details: of this one, in brackets; empty where there are none.
    """

    def __init__(self, kind: str, details: str = ""):
        super().__init__(kind)
        self.kind, self.details = kind, f" ({details})" if details else ""


@functools.cache
def _masks() -> Any:
    try:
        from faster_coco_eval import mask
    except ImportError as error:
        raise ImportError(f"COCO's annotations need faster-coco-eval: {install_line('train')}.") from error
    return mask


def run_lengths(segmentation: Any, size: list[int]) -> bytes:
    """Returns the run lengths of an annotation's mask, empty where it has polygons and none of them has three points.

    Args:
        segmentation: of the annotation.
        size: height and width of the image.

    Raises:
        AnnotationError: it is no mask of this image.
        ImportError: faster-coco-eval is not installed.
    """
    if not segmentation:
        raise AnnotationError("without a segmentation, and detectors learn masks here")
    if isinstance(segmentation, dict):
        return _of_run_lengths(segmentation, size)
    if not isinstance(segmentation, list) or not all(isinstance(one, list) for one in segmentation):
        raise AnnotationError("whose segmentation is neither polygons nor run lengths", repr(segmentation))
    if not all(are_finite(one) and len(one) % 2 == 0 for one in segmentation):
        raise AnnotationError("with a polygon that is not x, y, x, y, ... of finite numbers")
    polygons = [one for one in segmentation if len(one) >= 6]
    for axis, side in enumerate(reversed(size)):
        if not all(-side <= min(one[axis::2]) and max(one[axis::2]) <= 2 * side for one in polygons):
            raise AnnotationError("with a polygon far outside of the image", f"image {_text(size)}")
    return _masks().merge(_masks().frPyObjects(polygons, *size))["counts"] if polygons else b""


def _of_run_lengths(segmentation: dict[str, Any], size: list[int]) -> bytes:
    if segmentation.get("size") != size:
        sizes = f"{_text(segmentation.get('size'))}, image {_text(size)}"
        raise AnnotationError("with a mask of another size than the image", sizes)
    counts = segmentation.get("counts")
    if isinstance(counts, str) and counts_of(counts, math.prod(size)) is not None:
        return counts.encode()
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if not whole or sum(counts) != math.prod(size):
        raise AnnotationError("with a damaged mask, whose run lengths do not add up to its pixels")
    return _masks().frPyObjects(segmentation, *size)["counts"]


def no_pixels(size: list[int]) -> bytes:
    """Returns the run lengths of an object that is nowhere."""
    return _masks().frPyObjects({"size": size, "counts": [math.prod(size)]}, *size)["counts"]


def mask_pixels(mask: dict[str, Any]) -> UInt8[np.ndarray, "H W"]:
    """Returns the pixels of a mask, 0 and 1, column after column in memory.

    Args:
        mask: {"size": [height, width], "counts": run lengths}.
    """
    return _masks().decode(mask)


def mask_area(counts: bytes, size: list[int]) -> int:
    """Returns the pixels of a mask."""
    return int(_masks().area({"size": size, "counts": counts}))


def are_finite(values: Any) -> bool:
    """Returns whether something of a JSON document is a list of finite numbers."""
    try:
        return (
            isinstance(values, list) and {int, float}.issuperset(map(type, values)) and all(map(math.isfinite, values))
        )
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _text(size: Any) -> str:
    return " x ".join(map(str, size)) if isinstance(size, list) else repr(size)
