"""Image folders packed into a few large files, which is what network storage wants: ArrayRecord shards and an index.

    python -m natjax_train.data.records IMAGENET/train PACKED/train      # and the same for val

A record is a label (4 bytes, little endian) and the bytes of the image file, unchanged. `index.json` names classes and shards
and says how many images each has. Images are packed in random order, so that classes are spread over all shards.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from natjax.atomic import replacing
from natjax.errors import ImageError, NatjaxError
from natjax.labels import composed
from natjax.text import printable
from natjax_train.data.plausible import check_classes, check_training, remarks
from natjax_train.data.sources import SPLITS, ImageFolder, Source

INDEX = "index.json"
_FORMAT = "natjax records 1"


def is_records(directory: str | os.PathLike) -> bool:
    """Returns whether a folder holds records.

    Raises:
        ImageError: the folder cannot be read.
    """
    try:
        return (Path(directory) / INDEX).is_file()
    except OSError as error:
        raise ImageError(f"{directory}: the folder cannot be read: {error.strerror or error}.") from None


class Records:
    """A source of records. It opens shards when they are first read, in every process for itself.

    Args:
        directory: where `write` put them.

    Attributes:
        class_names: in the order of their numbers.
        class_counts: images of every class; None where an older index does not say.
        notes: none, as packing has said them.

    Raises:
        ImageError: the index or a shard is missing or damaged.
        ImportError: the package array_record is not installed.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = Path(directory)
        try:
            index = json.loads((self._directory / INDEX).read_text(encoding="utf-8"))
            if index["format"] != _FORMAT:
                raise ValueError(f"its format is {index['format']!r}")
            self.class_names: tuple[str, ...] = tuple(map(composed, index["class_names"]))
            counts = index.get("class_counts")  # which older indexes lack
            self.class_counts: tuple[int, ...] | None = None if counts is None else tuple(map(int, counts))
            self._shards = [(str(name), int(count)) for name, count in index["shards"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImageError(f"{self._directory / INDEX} is no index of records: {error}.") from None
        for name, _ in self._shards:
            if not (self._directory / name).is_file():
                raise ImageError(f"{self._directory} lacks the shard {name}; copy it again or pack the images anew.")
        self.notes: tuple[str, ...] = ()
        self._ends = list(itertools.accumulate(count for _, count in self._shards))
        self._readers: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        try:
            record = self._reader(shard).read([place])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise ImageError(f"{self.name(index)} cannot be read: {error}.") from None
        return {"image": record[4:], "label": int.from_bytes(record[:4], "little")}

    def name(self, index: int) -> str:
        """Returns shard and number of an image."""
        shard = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        return f"{self._directory / self._shards[shard][0]}, record {place}"

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            module = _array_record()
            # Single records at random places: reading whole groups ahead would be in vain.
            path = str(self._directory / self._shards[shard][0])
            self._readers[shard] = module.ArrayRecordReader(path, options="readahead_buffer_size:0")
        return self._readers[shard]


def write(
    source: Source,
    directory: str | os.PathLike,
    *,
    images_per_shard: int = 10_000,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Packs the files of an image folder. The index comes last, so a folder without one is known to be incomplete.

    Args:
        source: whose items hold the bytes of files.
        directory: a new or empty folder.
        images_per_shard: of the packed files.
        seed: of the order.
        report: called with the progress after every shard.

    Raises:
        ValueError: `images_per_shard` is less than 1.
        ImageError: there is something in the folder already.
    """
    if images_per_shard < 1:
        raise ValueError(f"images_per_shard must be at least 1; got {images_per_shard}.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ImageError(f"{directory} is not empty; give a new folder.")
    order = np.random.default_rng(seed).permutation(len(source))
    starts = range(0, len(order), images_per_shard)
    shards, begin = [], time.monotonic()
    for number, start in enumerate(starts):
        part = order[start : start + images_per_shard]
        name = f"{number:05d}-of-{len(starts):05d}.array_record"
        writer = _array_record().ArrayRecordWriter(str(directory / name), "group_size:1")
        for index in map(int, part):
            item = source[index]
            writer.write(int(item["label"]).to_bytes(4, "little") + bytes(item["image"]))
        writer.close()
        shards.append([name, len(part)])
        done = start + len(part)
        rate = done / max(1e-6, time.monotonic() - begin)
        report(f"{done}/{len(order)} images, {rate:.0f}/s, {(len(order) - done) / rate:.0f} s left")
    index = {
        "format": _FORMAT,
        "class_names": list(source.class_names),
        "class_counts": source.class_counts,
        "shards": shards,
    }
    with replacing(directory / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _array_record() -> Any:
    try:
        from array_record.python import array_record_module  # ty: ignore[missing-module-member]
    except ImportError:
        raise ImportError("Records need the package array_record: pip install array_record.") from None
    return array_record_module


def main() -> int:
    """Packs an image folder."""
    parser = argparse.ArgumentParser(
        prog="python -m natjax_train.data.records", description="Packs an image folder into ArrayRecord shards."
    )
    parser.add_argument("source", help="folder with one folder of images per class")
    parser.add_argument("directory", help="new folder for the records")
    parser.add_argument("--images-per-shard", type=int, default=10_000, metavar="N")
    args = parser.parse_args()
    try:
        if Path(args.directory).resolve().is_relative_to(Path(args.source).resolve()):
            raise ImageError(f"{args.directory} lies in the folder to be packed, {args.source}; give one elsewhere.")
        source = ImageFolder(args.source)
        is_validation = Path(args.source).resolve().name in SPLITS["val"]  # where a class may be without images
        (check_classes if is_validation else check_training)(source)
        for note in (*source.notes, *remarks(source)):
            print(f"natjax: {printable(note)}", file=sys.stderr)
        write(source, args.directory, images_per_shard=args.images_per_shard, report=print)
    except (NatjaxError, OSError, ImportError) as error:
        print(f"natjax: error: {printable(str(error))}", file=sys.stderr)
        return 1
    except ValueError as error:  # what is left are arguments
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
