"""Data that are split by seed, and implausible data."""

from __future__ import annotations

import sys
import types

import numpy as np
import PIL.Image
import pytest

from natjax import image_files
from natjax.errors import ImageError
from natjax_train.data import check_splits, check_training, open_source, open_splits, remarks

pytestmark = pytest.mark.once


@pytest.fixture
def folder(tmp_path):
    """Three classes of 10, 3 and 2 images, without splits."""
    for name, count in (("cat", 10), ("dog", 3), ("cow", 2)):
        write(tmp_path / name, count)
    return tmp_path


def write(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        PIL.Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i}.png")


def names(spec, split, **options):
    source = open_source(spec, split, **options)
    assert [source[i]["label"] for i in range(len(source))] == sorted(source[i]["label"] for i in range(len(source)))
    return {source.name(i) for i in range(len(source))}


def test_a_part_of_every_class_is_held_out(folder):
    training, validation = (open_source(folder, split, val_fraction=0.2, seed=1) for split in ("train", "val"))
    assert training.class_names == validation.class_names == ("cat", "cow", "dog")
    assert (training.class_counts, validation.class_counts) == ((8, 1, 2), (2, 1, 1))
    assert training.notes[-1].endswith("4 of 15 images are held out for validation (val_fraction 0.2)")
    held_out = names(folder, "val", val_fraction=0.2, seed=1)
    assert not held_out & names(folder, "train", val_fraction=0.2, seed=1)
    assert held_out == names(folder, "val", val_fraction=0.2, seed=1)
    assert any(held_out != names(folder, "val", val_fraction=0.2, seed=seed) for seed in (2, 3))


def test_the_split_stays_where_the_folder_moves_and_grows(folder, tmp_path):
    relative = {name.removeprefix(str(folder)) for name in names(folder, "val", val_fraction=0.3)}
    (folder / "train").mkdir()
    for name in ("cat", "dog", "cow"):
        (folder / name).rename(folder / "train" / name)
    moved = {name.removeprefix(str(folder / "train")) for name in names(folder, "val", val_fraction=0.3)}
    assert moved == relative
    PIL.Image.new("L", (8, 8)).save(folder / "train" / "cat" / "new.png")
    grown = names(folder, "val", val_fraction=0.3)
    assert len(grown & {f"{folder / 'train'}{name}" for name in moved}) >= len(moved) - 1


def test_both_parts_are_of_one_scan(folder, monkeypatch):
    scans, scan = [], image_files.find_images
    monkeypatch.setattr(image_files, "find_images", lambda path, *others: scans.append(path) or scan(path, *others))
    parts = open_splits(folder, val_fraction=0.2, seed=1)
    assert sorted(path.name for path in scans) == ["cat", "cow", "dog"]
    for part, split in zip(parts, ("train", "val"), strict=True):
        found = {part.name(i) for i in range(len(part))}
        assert found == names(folder, split, val_fraction=0.2, seed=1)


def test_refusals(folder):
    with pytest.raises(ImageError, match=r"it holds cat, cow, dog.*--val-fraction 0\.1 holds out a tenth"):
        open_source(folder, "train")
    write(folder / "one", 1)
    with pytest.raises(ImageError, match="the class one has one image"):
        open_source(folder, "train", val_fraction=0.5)
    write(folder / "val" / "cat", 1)
    with pytest.raises(ValueError, match="val is there: leave val_fraction out"):
        open_source(folder, "val", val_fraction=0.5)
    with pytest.raises(ValueError, match="leave val_fraction out"):
        open_source("digits", "val", val_fraction=0.5)
    with pytest.raises(ImageError, match=r"0\.png: is a file"):
        open_source(folder / "cat" / "0.png", "train")


class Sized(types.SimpleNamespace):
    def __len__(self):
        return 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_names": ("cats",)}, "one class, cats, .* needs two or more"),
        ({"class_names": ("train",)}, "one class, train, .* one folder too deep.*first image is here/x.png"),
        ({"class_names": ("Train", "valid")}, "are Train, valid, which name no classes.* one folder too deep"),
        ({"class_names": ("all",), "notes": ("images of subfolders are pooled",)}, "one folder too deep"),
        ({"class_names": tuple("abcdefgh"), "class_counts": (0,) * 7 + (1,)}, "images: a, b, c, d, e and 2 more. Add"),
    ],
)
def test_classes_that_cannot_be_meant(given, message):
    source = Sized(**{"class_counts": None, "notes": (), "name": lambda index: "here/x.png"} | given)
    with pytest.raises(ImageError, match=message):
        check_training(source)


def test_classes_without_validation_images():
    source = Sized(class_names=("cat", "dog"), class_counts=(3, 0))
    assert remarks(source) == ["Classes without validation images: dog. What is measured says nothing of them."]
    assert remarks(Sized(class_names=("cat", "dog"), class_counts=None)) == []


def test_names_that_differ_by_case_or_spaces():
    (said,) = remarks(Sized(class_names=("Cat", "cat", "polar bear", "polar_bear"), class_counts=None))
    assert said.startswith(
        "Classes whose names differ only by case or spaces: 'Cat' and 'cat', 'polar bear' and 'polar_"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_splits_that_share_images(folder):
    for name in ("cat", "dog"):
        (folder / name).rename((folder / "train").mkdir(exist_ok=True) or folder / "train" / name)
    (folder / "val").symlink_to(folder / "train")
    training, validation = (open_source(folder, split) for split in ("train", "val"))
    with pytest.raises(ImageError, match=r"train and .*val are one folder"):
        check_splits(training, validation)
    (folder / "val").unlink()
    write(folder / "val" / "cat", 2)
    (folder / "val" / "cat" / "linked.png").symlink_to(folder / "train" / "cat" / "0.png")
    (folder / "val" / "dog").symlink_to(folder / "train" / "dog")
    validation = open_source(folder, "val")
    check_splits(training, validation)
    assert remarks(validation, training)[0].startswith("4 of the 6 validation images are training images too")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_held_out_images_that_links_share_with_training(folder):
    for i in range(20):
        (folder / "cat" / f"linked {i}.png").symlink_to(folder / "cat" / "0.png")
    training, validation = open_splits(folder, val_fraction=0.5)
    assert "of the 18 validation images are training images too" in remarks(validation, training)[0]


def test_folders_that_are_not_used_are_said(folder):
    for split in ("train", "val", "validation"):
        for name in ("cat", "dog"):
            write(folder / split / name, 1)
    for i in range(2):
        PIL.Image.new("L", (8, 8)).save(folder / "train" / f"{i}.png")
    assert open_source(folder, "val").notes == (f"{folder} has val/ and validation/: val/ is used",)
    note = f"{folder / 'train'}: 2 images beside the class folders belong to no class and are left out"
    assert open_source(folder, "train").notes == (note,)


def test_splits_that_cannot_be_read(folder, monkeypatch):
    is_dir = type(folder).is_dir

    def denied(path, **options):
        if path.name == "val":
            raise PermissionError(13, "Permission denied", path)
        return is_dir(path, **options)

    monkeypatch.setattr(type(folder), "is_dir", denied)
    with pytest.raises(ImageError, match=r"val: the folder cannot be read: Permission denied\.$"):
        open_source(folder, "val")
