"""COCO's annotations: a JSON file, read and checked as a whole, and kept as arrays that worker processes can take.

Masks are run lengths from here on, those of polygons as COCO's tools draw them. A file that is no such file, or says what cannot
be, is refused with all of its problems. Objects that mmdetection leaves out of training are kept, with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natjax.errors import ImageError
from natjax.labels import composed
from natjax.text import counted, first_few, printable, shortened
from natjax_train.data.coco_masks import AnnotationError, are_finite, mask_area, no_pixels, run_lengths

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int32, Int64, UInt8

# Why objects are left out of training, by their number in `Annotations.left_out`.
REASONS = (
    "",
    "crowds",
    "to be ignored",
    "outside of their images",
    "of area 0",
    "with a side of less than a pixel",
    "without a polygon of three points",
)
_MOST_PIXELS = 2**31  # of an image: run lengths are counted in 32 bits
_LONGEST_NAME = 4096  # bytes: systems open no longer paths, and names are kept in arrays of the longest one
_KEYS = {"images": ("id", "file_name", "width", "height"), "categories": ("id", "name")}
_KEYS["annotations"] = ("id", "image_id", "category_id", "bbox")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """What a file says, images in the order of their ids and objects in the order of their images.

    Attributes:
        path: of the file.
        class_names: in the order of the categories' ids, or as they were given.
        category_ids: of the classes.
        image_ids: of the images.
        file_names: of the images within their folder, as bytes.
        sizes: height and width of the images.
        images: places of the objects' images.
        starts: the objects of image i have the numbers `starts[i]` to `starts[i + 1]`.
        boxes: x, y, width, height.
        labels: numbers of the objects' classes.
        areas: in pixels; that of the mask where the file has none.
        left_out: why training leaves an object out, see `REASONS`; 0 where it does not.
        crowd: whether an object is a crowd.
        masks: the run lengths of all objects in COCO's text of them, one after the other.
        mask_starts: where those of an object begin.
    """

    path: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: Int64[np.ndarray, "N"]
    file_names: np.ndarray
    sizes: Int32[np.ndarray, "N 2"]
    images: Int64[np.ndarray, "M"]
    starts: Int64[np.ndarray, "N+1"]
    boxes: Float64[np.ndarray, "M 4"]
    labels: Int32[np.ndarray, "M"]
    areas: Float64[np.ndarray, "M"]
    left_out: UInt8[np.ndarray, "M"]
    crowd: Bool[np.ndarray, "M"]
    masks: bytes
    mask_starts: Int64[np.ndarray, "M+1"]

    def mask(self, image: int, number: int) -> dict[str, Any]:
        """Returns the mask of an object in COCO's form: {"size": [height, width], "counts": bytes}."""
        counts = self.masks[self.mask_starts[number] : self.mask_starts[number + 1]]
        return {"size": self.sizes[image].tolist(), "counts": counts}


class _Problems:
    """What is wrong with a file, all of it, by kind."""

    def __init__(self, path: Path):
        self._path, self._found = path, {}

    def add(self, kind: str, what: str) -> None:
        self._found.setdefault(kind, []).append(printable(shortened(what, 80)))

    def check(self, thing: str, advice: str = "") -> None:
        """Raises an `ImageError` where there are problems, which says them all."""
        if self._found:
            found = [f"{counted(len(each), thing)} {kind}: {first_few(each, 3)}" for kind, each in self._found.items()]
            raise ImageError(f"{self._path} has {'; '.join(found)}.{advice}")


def read_annotations(path: Path, class_names: Sequence[str] | None = None) -> Annotations:
    """Reads a file of COCO's annotations.

    Args:
        path: of the file.
        class_names: the classes in the order of their numbers; None is the file's own in the order of their ids.

    Raises:
        ImageError: it cannot be read, is no such file, contradicts itself, has no masks or other classes.
        ImportError: faster-coco-eval is not installed.
    """
    document = _document(path)
    names, category_ids = _categories(document["categories"], path, class_names)
    image_ids, file_names, sizes = _images(document["images"], path)
    place_of = {number: place for place, number in enumerate(image_ids.tolist())}
    label_of = {number: label for label, number in enumerate(category_ids)}
    problems, objects, ids = _Problems(path), [], set()
    for entry in document["annotations"]:
        try:
            objects.append(_object(entry, place_of, label_of, sizes))
        except AnnotationError as error:
            problems.add(error.kind, f"{entry['id']}{error.details}")
        if entry["id"] in ids:
            problems.add("with the id of another one", str(entry["id"]))
        ids.add(entry["id"])
    problems.check("annotation", " Mend the file.")
    objects.sort(key=operator.itemgetter("image"))  # which keeps the order within an image

    def column(name: str, dtype: Any) -> Any:
        return np.array([one[name] for one in objects], dtype)

    masks, images = [one["mask"] for one in objects], column("image", np.int64)
    return Annotations(
        path=path,
        class_names=names,
        category_ids=category_ids,
        image_ids=image_ids,
        file_names=file_names,
        sizes=sizes,
        images=images,
        starts=np.searchsorted(images, np.arange(len(image_ids) + 1)).astype(np.int64),
        boxes=column("box", np.float64),
        labels=column("label", np.int32),
        areas=column("area", np.float64),
        left_out=column("left_out", np.uint8),
        crowd=column("crowd", bool),
        masks=b"".join(masks),
        mask_starts=np.cumsum([0, *map(len, masks)], dtype=np.int64),
    )


def _document(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the file's images, annotations and categories, each a list of objects with the keys that count."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except RecursionError:
        raise ImageError(f"{path}: cannot be read: it is nested too deeply to be annotations.") from None
    except ValueError as error:  # of JSON, of UTF-8, or of a number with thousands of digits
        raise ImageError(f"{path}: is no JSON, or only a part of it: {error}. Fetch or write it again.") from None
    if isinstance(document, list):
        results = bool(document) and isinstance(document[0], dict) and "score" in document[0]
        what = "a list of results, which have scores" if results else "a list"
        raise ImageError(f"{path}: is {what}, and no annotations: those are an object with {', '.join(_KEYS)}.")
    missing = [name for name in _KEYS if not isinstance(document, dict) or not isinstance(document.get(name), list)]
    if missing:
        has = f"; it has {first_few(list(map(printable, document)))}" if isinstance(document, dict) else ""
        raise ImageError(f"{path}: has no lists of {' and '.join(missing)}, as COCO's annotations have{has}.")
    problems = _Problems(path)
    for name, keys in _KEYS.items():
        for place, entry in enumerate(document[name]):
            lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if lacking:
                problems.add(f"in {name} without {' and '.join(lacking)}", f"number {place}")
            else:
                for key in ("id", "image_id", "category_id"):
                    if key in keys and not _is_id(entry[key]):
                        problems.add(f"in {name} whose {key} is no whole number", f"number {place} ({entry[key]!r})")
    problems.check("entry")
    for name in _KEYS:
        if not document[name]:
            raise ImageError(f"{path}: its list of {name} is empty.")
    return document


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _categories(
    entries: list[dict[str, Any]], path: Path, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the names of the classes and the ids of their categories."""
    problems, names = _Problems(path), {}
    for entry in sorted(entries, key=lambda entry: entry["id"]):
        name = composed(entry["name"]).strip() if isinstance(entry["name"], str) else ""
        if not name:
            problems.add("without a name", str(entry["id"]))
        elif entry["id"] in names:
            problems.add("with the id of another one", f"{name} ({entry['id']})")
        elif name in names.values():
            problems.add("with the name of another one", f"{name} ({entry['id']})")
        names[entry["id"]] = name
    problems.check("category", " Each class needs an id and a name of its own.")
    if class_names is None:
        return tuple(names.values()), tuple(names)
    id_of = {name: number for number, name in names.items()}
    unknown, absent = [n for n in id_of if n not in class_names], [n for n in class_names if n not in id_of]
    if unknown or absent:
        differences = [f"{what} {first_few(each)}" for what, each in (("also", unknown), ("not", absent)) if each]
        raise ImageError(f"{path} has other categories than the training images: {' and '.join(differences)}.")
    return tuple(class_names), tuple(id_of[name] for name in class_names)


def _images(entries: list[dict[str, Any]], path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids, names of files and sizes of the images, in the order of their ids."""
    problems, names, ids = _Problems(path), set(), set()
    entries = sorted(entries, key=lambda entry: entry["id"])
    encoded = []
    for entry in entries:
        number, name, sides = entry["id"], entry["file_name"], (entry["height"], entry["width"])
        if number in ids:
            problems.add("with the id of another one", str(number))
        if isinstance(name, str) and name in names:
            problems.add("with the file of another one", name)
        if not all(type(side) is int and side > 0 for side in sides) or math.prod(sides) >= _MOST_PIXELS:
            problems.add("of an impossible size", f"{name} (height {sides[0]!r}, width {sides[1]!r})")
        try:
            inside = isinstance(name, str) and _is_inside(name)
            encoded.append(os.fsencode(name) if inside else b"")
            if len(encoded[-1]) > _LONGEST_NAME:
                problems.add(f"whose file_name has more than {_LONGEST_NAME:,} bytes", name)
        except UnicodeEncodeError:
            inside = False
        if not inside:
            problems.add("whose file_name is no path within the folder of the images", repr(name))
        ids.add(number)
        names.add(name if inside else None)
    problems.check("image", " Mend the file.")
    sizes = np.array([(entry["height"], entry["width"]) for entry in entries], np.int32)
    return np.array([entry["id"] for entry in entries], np.int64), np.array(encoded), sizes


def _is_inside(name: str) -> bool:
    """Returns whether a path stays in its folder, on any system."""
    parts = re.split(r"[/\\]", name)
    return bool(parts[0]) and ".." not in parts and "\0" not in name and not re.match("[A-Za-z]:", name)


def _object(
    entry: dict[str, Any], place_of: Mapping[int, int], label_of: Mapping[int, int], sizes: np.ndarray
) -> dict[str, Any]:
    """Returns what an annotation says, by the names of `Annotations`, and which image and mask it has.

    Raises:
        AnnotationError: something in it is wrong.
    """
    box, area, crowd = entry["bbox"], entry.get("area"), entry.get("iscrowd") or 0
    if entry["image_id"] not in place_of:
        raise AnnotationError("of an image that is not in the file", f"image {entry['image_id']}")
    if entry["category_id"] not in label_of:
        raise AnnotationError("of a category that is not in the file", f"category {entry['category_id']}")
    if not are_finite(box) or len(box) != 4:
        raise AnnotationError("whose bbox is not four finite numbers", repr(box))
    if area is not None and not are_finite([area]):
        raise AnnotationError("whose area is no finite number", repr(area))
    if crowd not in (0, 1):
        raise AnnotationError("whose iscrowd is not 0 or 1", repr(crowd))
    image = place_of[entry["image_id"]]
    size = sizes[image].tolist()
    mask = run_lengths(entry.get("segmentation"), size)
    whole = mask or no_pixels(size)
    area = float(mask_area(whole, size) if area is None else area)
    (x, y, width, height), crowd = box, bool(crowd)
    rows, columns = min(y + height, size[0]) - max(y, 0), min(x + width, size[1]) - max(x, 0)
    reasons = (
        crowd,
        bool(entry.get("ignore")),
        rows <= 0 or columns <= 0,
        area <= 0,
        width < 1 or height < 1,
        not mask,
    )
    left_out = next((number for number, holds in enumerate(reasons, 1) if holds), 0)
    label = label_of[entry["category_id"]]
    return {
        "image": image,
        "mask": whole,
        "box": box,
        "label": label,
        "area": area,
        "crowd": crowd,
        "left_out": left_out,
    }
