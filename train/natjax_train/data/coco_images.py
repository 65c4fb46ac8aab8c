"""Images with objects, by COCO's annotations: what there is to learn of each, and the ground truth that detections are measured
by.

`inspect` looks at every image once, before anything is learnt from them: whether it is there, and as large as its annotations
say.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from natjax.errors import ImageError
from natjax.images import decode_image, stored_size, upright_size
from natjax.text import counted, first_few, printable, shortened
from natjax_train.data.coco_json import REASONS, Annotations

if TYPE_CHECKING:
    from jaxtyping import Int32, Int64

_LEAST_SIDE = 32  # pixels; mmdetection trains on no smaller images
_FAR = 2.0**31  # pixels; no image reaches as far
_SECONDS_BETWEEN_REPORTS = 10.0


class CocoImages:
    """The images of a file of COCO's annotations, in the order of their ids.

    An item is {"image": bytes of a file, "size": (height, width) that its annotations say, "boxes": float32 [n, 4] of x1, y1, x2,
    y2, "class_labels": int32 [n], "masks": list of n masks as COCO writes them}. Crowds and what mmdetection leaves out of
    training are in no item: boxes outside of the image, of area 0 or with a side of less than a pixel.

    Args:
        annotations: of the images.
        directory: folder of the images.

    Attributes:
        directory: folder of the images.
        notes: sentences about what was found.
    """

    def __init__(self, annotations: Annotations, directory: Path):
        self.directory, self._annotations = directory, annotations
        self._indices = np.arange(len(annotations.image_ids))
        self.notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, found = int(self._indices[index]), self._annotations
        objects = self._objects(image)
        boxes = found.boxes[objects]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        return {
            "image": Path(self.name(index)).read_bytes(),
            "size": tuple(found.sizes[image].tolist()),
            "boxes": corners.clip(-_FAR, _FAR).astype(np.float32),
            "class_labels": found.labels[objects],
            "masks": [found.mask(image, number) for number in objects.tolist()],
        }

    def name(self, index: int) -> str:
        """Returns the path of an image."""
        return str(self.directory / os.fsdecode(self._annotations.file_names[self._indices[index]]))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return self._annotations.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's numbers of the classes."""
        return self._annotations.category_ids

    @property
    def ids(self) -> Int64[np.ndarray, "N"]:
        """COCO's numbers of the images."""
        return self._annotations.image_ids[self._indices]

    @property
    def sizes(self) -> Int32[np.ndarray, "N 2"]:
        """Height and width of the images, as their annotations say."""
        return self._annotations.sizes[self._indices]

    @property
    def groups(self) -> Int64[np.ndarray, "N"]:
        """Which images go into one batch: 0 where the width is at least the height, else 1."""
        height, width = self.sizes.T
        return (height > width).astype(np.int64)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images in which there are objects of each class to learn."""
        found, mine = self._annotations, self._all_objects()
        mine = mine[found.left_out[mine] == 0]
        _, labels = np.unique([found.images[mine], found.labels[mine]], axis=1)
        return tuple(np.bincount(labels, minlength=len(self.class_names)).tolist())

    @property
    def object_counts(self) -> Int64[np.ndarray, "N"]:
        """Objects of every image that there are to learn."""
        learnt = np.concatenate([[0], np.cumsum(self._annotations.left_out == 0)])
        return np.diff(learnt[self._annotations.starts])[self._indices]

    @property
    def max_objects(self) -> int:
        """Most objects of an image that there are to learn."""
        return int(self.object_counts.max())

    def part(self, indices: Sequence[int], notes: tuple[str, ...]) -> CocoImages:
        """Returns some of the images as a source of their own."""
        part = CocoImages(self._annotations, self.directory)
        part._indices, part.notes = self._indices[list(indices)], notes
        return part

    def learnable(self, *, keep_empty: bool, max_objects: int) -> CocoImages:
        """Returns the images that mmdetection trains on, with notes on what is left out.

        Args:
            keep_empty: whether images without objects stay.
            max_objects: that an image has in training; of more, a part that changes from epoch to epoch.

        Raises:
            ImageError: there is no object to learn.
        """
        found, counts, path = self._annotations, self.object_counts, self._annotations.path
        numbers = self._all_objects()
        reasons = Counter(found.left_out[numbers].tolist())
        left_out = [f"{reasons[n]:,} {what}" for n, what in enumerate(REASONS) if n and reasons[n]]
        if not reasons[0]:
            raise ImageError(
                f"{path}: there is nothing to learn; of {counted(len(numbers), 'object')} are {', '.join(left_out)}. Boxes are "
                "x, y, width, height in pixels."
            )
        small, empty = self.sizes.min(1) < _LEAST_SIDE, counts == 0
        kept = ~small & (keep_empty | ~empty)
        many = int(np.sum(counts[kept] > max_objects))
        unseen = [name for name, count in zip(self.class_names, self.class_counts, strict=True) if not count]
        images = [f"{small.sum():,} with a side of less than {_LEAST_SIDE} pixels"] if small.any() else []
        if not keep_empty and (lost := int(np.sum(empty & ~small))):
            images.append(f"{lost:,} without objects (keep_empty)")
        notes = (
            (left_out, f"{path}: objects left out of training: {', '.join(left_out)}"),
            (images, f"{path}: images left out of training: {', '.join(images)}"),
            (many, f"{path}: images with more than {max_objects} objects, of which a random part is learnt: {many:,}"),
            (unseen, f"{path}: classes without training images: {first_few(unseen)}"),
        )
        if not (kept & ~empty).any():
            raise ImageError(f"{path}: all images with objects have a side of less than {_LEAST_SIDE} pixels.")
        return self.part(np.flatnonzero(kept).tolist(), (*self.notes, *(note for holds, note in notes if holds)))

    def ground_truth(self) -> dict[str, Any]:
        """Returns the annotations of the images in COCO's form: crowds and all that training leaves out included.

        Annotations are numbered from 1: COCO's evaluation takes an object with the id 0 for none.
        """
        found = self._annotations
        images, annotations = [], []
        for image in self._indices.tolist():
            number, (height, width) = int(found.image_ids[image]), found.sizes[image].tolist()
            name = os.fsdecode(found.file_names[image])
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for i in range(*found.starts[image : image + 2].tolist()):
                category = found.category_ids[found.labels[i]]
                one = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
                one |= {"bbox": found.boxes[i].tolist(), "area": float(found.areas[i]), "iscrowd": int(found.crowd[i])}
                annotations.append(one | {"segmentation": found.mask(image, i)})
        categories = [{"id": n, "name": name} for n, name in zip(self.category_ids, self.class_names, strict=True)]
        return {"images": images, "categories": categories, "annotations": annotations}

    def inspect(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Looks for all images, and reads their sizes.

        Args:
            report: called with the progress, every ten seconds.

        Raises:
            ImageError: some are missing or of other sizes than their annotations say, or none can be read.
        """
        found: dict[str, list[str]] = {"missing": [], "size": [], "unreadable": [], "stored": []}
        shown = time.monotonic()
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for index, (kind, what) in enumerate(pool.map(self._inspected, range(len(self)))):
                found.setdefault(kind, []).append(what)
                if time.monotonic() - shown > _SECONDS_BETWEEN_REPORTS:
                    shown = time.monotonic()
                    report(f"checked {index + 1:,} of {len(self):,} images")
        where, count = f"of {self._annotations.path}", f"{len(self):,} images"
        if missing := found["missing"]:
            raise ImageError(
                f"{len(missing):,} of the {count} {where} are not in {self.directory}: {first_few(missing)}."
            )
        if wrong := found["size"]:
            raise ImageError(
                f"{len(wrong):,} of the {count} {where} have another size (height x width) than it says: {first_few(wrong, 3)}. "
                "Its boxes and masks are those of other images, or of these before they were resized."
            )
        if len(unreadable := found["unreadable"]) == len(self):
            raise ImageError(f"None of the {count} in {self.directory} can be read: {first_few(unreadable, 3)}.")
        if unreadable:
            what = counted(len(unreadable), "image")
            self.notes = (*self.notes, f"{what} that cannot be read: {first_few(unreadable, 3)}")
        if stored := found["stored"]:
            what = counted(len(stored), "image")
            note = (
                f"{what} taken as stored, not turned upright (EXIF), which their sizes are of: {first_few(stored, 3)}"
            )
            self.notes = (*self.notes, note)

    def _inspected(self, index: int) -> tuple[str, str]:
        """Returns what is odd about an image, "" for nothing, and its name."""
        path, said = self.name(index), tuple(self._annotations.sizes[self._indices[index]].tolist())
        name = printable(shortened(os.path.relpath(path, self.directory)))
        if not os.path.exists(path):
            return "missing", name
        try:
            size = upright_size(path)
            if size == said:
                return "", name
            if stored_size(path) == said:
                return "stored", name
        except (ImageError, OSError) as error:
            return "unreadable", printable(str(error).rstrip("."))
        return "size", f"{name} ({size[0]} x {size[1]}, not {said[0]} x {said[1]})"

    def _all_objects(self) -> np.ndarray:
        """Returns the numbers of all objects of the images."""
        return np.flatnonzero(np.isin(self._annotations.images, self._indices))

    def _objects(self, image: int) -> np.ndarray:
        """Returns the numbers of an image's objects that there are to learn."""
        first, last = self._annotations.starts[image : image + 2].tolist()
        return first + np.flatnonzero(self._annotations.left_out[first:last] == 0)


def decode_annotated(image: bytes, size: tuple[int, int], num_channels: int) -> PIL.Image.Image:
    """Returns an image in RGB (or grey for one channel), as its annotations see it: upright, or else as it is stored.

    Args:
        image: bytes of a file.
        size: height and width that the annotations say.
        num_channels: 1 or 3.

    Raises:
        ImageError: it cannot be read, or has another size.
    """
    is_upright = upright_size(image) == size
    pixels = decode_image(image, "L" if num_channels == 1 else "RGB", upright=is_upright)
    if (pixels.height, pixels.width) != size:
        got = f"{pixels.height} x {pixels.width}"
        raise ImageError(f"The image: is {got} (height x width), and its annotations are of {size[0]} x {size[1]}.")
    return pixels
