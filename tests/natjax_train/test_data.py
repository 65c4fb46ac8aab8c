"""The input pipeline: sources, what happens to images, and batches that seed and step alone decide."""

import dataclasses
import io
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from natjax.errors import ImageError
from natjax.image_processing import NatImageProcessor
from natjax.images import load_image
from natjax_train.augment.host import random_resized_crop
from natjax_train.data import Digits, ImageFolder, eval_loader, eval_processor, open_source, records, train_loader
from natjax_train.data.transforms import decode, train_image
from natjax_train.recipes import RECIPES

pytestmark = pytest.mark.once

PLAIN = dataclasses.replace(
    RECIPES["nat_mini"],
    auto_augment="",
    train_interpolation="bicubic",
    horizontal_flip=0.0,
    crop=False,
    image_size=16,
    max_corrupt=2,
)
CROPS = dataclasses.replace(RECIPES["nat_mini"], image_size=16)


def picture(seed, size=(24, 20), mode="RGB"):
    channels = () if mode == "L" else (3,)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, *channels), np.uint8)
    return PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BILINEAR)


@pytest.fixture
def folder(tmp_path):
    """Two splits of three classes; images of various kinds, 17 to train with and 7 to evaluate."""
    for split, count in (("train", 17), ("val", 7)):
        for i in range(count):
            path = tmp_path / split / f"class {i % 3}" / f"{i:02d}.{('png', 'JPEG', 'webp')[i % 3]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(i, mode="L" if i % 5 == 0 else "RGB").save(path)
        (tmp_path / split / "class 0" / "notes.txt").write_text("no image")
        (tmp_path / split / ".cache").mkdir()
    return tmp_path


def damage(folder, *names):
    for name in names:
        path = next((folder / "train").glob(f"*/{name}.*"))
        path.write_bytes(path.read_bytes()[:60])


def loader(source, settings=PLAIN, batch_size=5, **options):
    return train_loader(
        source,
        batch_size=batch_size,
        image_size=16,
        num_channels=3,
        augmentation=settings,
        seed=3,
        max_corrupt=settings.max_corrupt,
        **options,
    )


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for a, b in zip(batches, others, strict=True):
        assert a.keys() == b.keys()
        assert all((a[k] == b[k]).all() for k in a)


def test_image_folders(folder):
    source = open_source(folder, "train")
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert len(source) == 17
    assert [source[i]["label"] for i in range(17)] == [0] * 6 + [1] * 6 + [2] * 5
    assert source[0]["image"] == (folder / "train" / "class 0" / "00.png").read_bytes()
    assert source.name(6).endswith("class 1/01.JPEG")
    assert len(open_source(str(folder), "val")) == 7


def test_evaluation_takes_the_classes_of_training(folder):
    shutil.rmtree(folder / "val" / "class 0")
    source = open_source(folder, "val")
    assert source.class_names == ("class 0", "class 1", "class 2")
    assert {source[i]["label"] for i in range(len(source))} == {1, 2}
    (folder / "val" / "stranger").mkdir()
    with pytest.raises(ImageError, match="classes that training has not: stranger"):
        open_source(folder, "val")


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(ImageError, match="has no train/: it should hold train/ and val/"):
        open_source(folder / "train", "train")
    with pytest.raises(ImageError, match="is no folder"):
        ImageFolder(folder / "nothing")
    (tmp_path / "empty" / "train" / "a").mkdir(parents=True)
    with pytest.raises(ImageError, match=r"no images in its folders \(.jpg"):
        open_source(tmp_path / "empty", "train")
    with pytest.raises(ImageError, match="has no folders in it"):
        ImageFolder(tmp_path / "empty" / "train" / "a")
    with pytest.raises(ValueError, match="'train' or 'val'; got 'test'"):
        open_source(folder, "test")


def test_what_a_folder_holds_is_counted_and_said(folder):
    train = folder / "train"
    for name in (
        "class 1/._01.png",
        "class 1/.ipynb_checkpoints/01.png",
        "class 2/deep/er/x.png",
        "class 2/y.heic",
        "z.png",
    ):
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0).save(train / name, "png")
    (train / "class 3").mkdir()
    source = open_source(folder, "train")
    assert source.class_counts == (6, 6, 6, 0)
    assert sorted(source.notes) == [
        f"{train}: 1 image beside the class folders belongs to no class and is left out",
        f"{train}: images of subfolders are pooled in their class folder: 1 in class 2",
        f"{train}: skipped 2 hidden folders, 1 .txt file, 1 hidden file, "
        "1 .heic file (pip install pillow-heif reads them)",
    ]
    assert not any("/." in source.name(i).removeprefix(str(folder)) for i in range(len(source)))
    val = open_source(folder, "val")
    assert val.class_counts == (3, 2, 2, 0)
    assert Digits("val").notes == ()
    assert sum(Digits("val").class_counts) == 360


def test_class_names_are_compared_in_composed_form(folder):
    composed, apart = "caf\u00e9", "cafe\u0301"
    (folder / "train" / "class 0").rename(folder / "train" / apart)
    (folder / "val" / "class 0").rename(folder / "val" / composed)
    if composed in {path.name for path in (folder / "train").iterdir()}:
        pytest.skip("the file system keeps one form only")
    train, val = open_source(folder, "train"), open_source(folder, "val")
    assert train.class_names == val.class_names == (composed, "class 1", "class 2")
    assert train[0]["label"] == val[0]["label"] == 0
    assert ImageFolder(folder / "val", [apart, "class 1", "class 2"]).class_counts == (3, 2, 2)
    (folder / "train" / composed).mkdir()
    with pytest.raises(ImageError, match=r"two folders for the class café, which differ in their Unicode form"):
        open_source(folder, "train")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_no_class_takes_the_images_of_another_by_a_link(folder):
    train = folder / "train"
    (train / "class 0" / "more").symlink_to(train / "class 2")
    (train / "class 1" / "up").symlink_to(folder)
    (train / "class 1" / "other split").symlink_to(train)
    assert open_source(folder, "train").class_counts == (6, 6, 5)
    for target in (train / "class 2", train, folder):
        (train / "class 3").symlink_to(target)
        with pytest.raises(ImageError, match="class 3 leads to the folder of another class or to one above"):
            open_source(folder, "train")
        (train / "class 3").unlink()


def test_digits():
    training, held_out = open_source("digits", "train"), Digits("val")
    assert (len(training), len(held_out)) == (1437, 360)
    assert training.class_names == tuple("0123456789")
    assert training[0]["image"].shape == (8, 8, 1)
    assert training[0]["image"].dtype == np.uint8
    assert training.name(3) == "digit 3 of train"


def test_digits_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    source = open_source("digits", "val")
    assert len(source) == 360
    assert source.notes == (
        "digits is natjax's own data set here, not the folder of that name: ./digits is the folder",
    )
    with pytest.raises(ImageError, match="digits has no val/"):
        open_source("./digits", "val")


def test_records_hold_what_the_folder_holds(folder, tmp_path):
    packed = tmp_path / "packed"
    for split in ("train", "val"):
        done = subprocess.run(
            [sys.executable, "-m", "natjax_train.data.records", folder / split, packed / split, "--images-per-shard", "6"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert "7/7 images" in done.stdout
    source, original = open_source(packed, "train"), open_source(folder, "train")
    assert isinstance(source, records.Records)
    assert source.class_names == original.class_names
    assert len(list((packed / "train").glob("*.array_record"))) == 3
    order = np.random.default_rng(0).permutation(17)
    assert [source[i] for i in range(17)] == [original[int(i)] for i in order]
    assert source.name(7).endswith("00001-of-00003.array_record, record 1")
    assert source.class_counts == original.class_counts == (6, 6, 5)
    assert "skipped 1 hidden folder, 1 .txt file" in done.stderr
    index = packed / "train" / "index.json"
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "class_counts"}))
    assert open_source(packed, "train").class_counts is None  # as of older versions
    for kind in ("threads", "processes"):
        assert_same(take(loader(source, workers=2, worker_kind=kind), 4), take(loader(source), 4))


@pytest.mark.parametrize(
    ("source", "directory", "message"),
    [
        (".", "../packed", "are train, val, which name no classes"),
        ("train", "train/packed", "lies in the folder to be packed"),
        ("train", "train/pa\x1b[2Jcked", r"pa\x1b[2Jcked lies in the folder to be packed"),
        ("empty", "packed", "Classes without training images: cow"),
    ],
)
def test_what_is_not_packed(folder, monkeypatch, capsys, source, directory, message):
    if source == "empty":
        shutil.copytree(folder / "train", folder / "empty")
        (folder / "empty" / "cow").mkdir()
    monkeypatch.setattr(sys, "argv", ["records", str(folder / source), str(folder / directory)])
    assert records.main() == 1
    assert message in capsys.readouterr().err
    assert not (folder / directory).exists()


@pytest.mark.parametrize("count", ["0", "-1"])
def test_records_need_images_in_their_shards(folder, tmp_path, monkeypatch, capsys, count):
    arguments = [str(folder / "val"), str(tmp_path / "packed"), "--images-per-shard", count]
    monkeypatch.setattr(sys, "argv", ["records", *arguments])
    with pytest.raises(SystemExit) as ended:
        records.main()
    assert ended.value.code == 2
    assert f"error: images_per_shard must be at least 1; got {count}." in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_damaged_records(folder, tmp_path):
    records.write(open_source(folder, "val"), tmp_path / "packed" / "val", images_per_shard=4)
    with pytest.raises(ImageError, match="is not empty"):
        records.write(open_source(folder, "val"), tmp_path / "packed" / "val")
    shutil.copytree(tmp_path / "packed" / "val", tmp_path / "packed" / "train")
    index = tmp_path / "packed" / "train" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"class_names": ["a", "b", "c"]}))
    with pytest.raises(ImageError, match="other classes than"):
        open_source(tmp_path / "packed", "val")
    next((tmp_path / "packed" / "train").glob("00001*")).unlink()
    with pytest.raises(ImageError, match="lacks the shard 00001-of-00002"):
        open_source(tmp_path / "packed", "train")
    index.write_text("{")
    with pytest.raises(ImageError, match="is no index of records"):
        open_source(tmp_path / "packed", "train")


def test_decoding():
    turned = io.BytesIO()
    image = picture(0)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(turned, "png", exif=exif)
    assert decode(turned.getvalue(), 3).size == (20, 24)
    assert decode(turned.getvalue(), 1).mode == "L"
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (np.asarray(decode(array, 3)) == array).all()
    with pytest.raises(ImageError, match="The image: not an image that Pillow can read"):
        decode(b"GIF89a", 3)


def test_bombs_are_not_decoded(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 300)
    file = io.BytesIO()
    picture(0).save(file, "png")
    with pytest.raises(ImageError, match="decompression bomb"):
        decode(file.getvalue(), 3)


def test_random_resized_crops_have_the_areas_and_ratios_asked_for():
    # A picture whose pixels tell where they are.
    width, height = 200, 160
    image = PIL.Image.fromarray(
        np.dstack(np.broadcast_arrays(np.arange(width), np.arange(height)[:, None], 0)).astype("uint8")
    )
    areas, ratios = [], []
    for seed in range(300):
        crop = np.asarray(
            random_resized_crop(image, np.random.default_rng(seed), 32, (0.2, 0.9), (0.5, 2.0), "bilinear")
        )
        spans = [np.ptp(crop[..., c].astype(float)) * 32 / 31 for c in (0, 1)]
        areas.append(spans[0] * spans[1] / (width * height))
        ratios.append(spans[0] / spans[1])
    assert 0.17 < min(areas) < 0.3
    assert 0.75 < max(areas) < 0.95
    assert 0.45 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.2
    assert abs(np.mean(np.log(ratios))) < 0.1


def test_where_no_crop_fits_the_middle_is_taken():
    image = picture(1, size=(300, 10))
    crop = random_resized_crop(image, np.random.default_rng(0), 8, (1.0, 1.0), (3 / 4, 4 / 3), "bicubic")
    expected = image.crop((143, 0, 156, 10)).resize((8, 8), PIL.Image.Resampling.BICUBIC)
    assert (np.asarray(crop) == np.asarray(expected)).all()


def test_flips():
    image = np.asarray(picture(2, size=(16, 16)))
    settings = dataclasses.replace(RECIPES["nat_mini"], auto_augment="", crop=False, horizontal_flip=0.3)
    flipped = [
        (train_image(image, np.random.default_rng(i), settings, 16, 3) == image[:, ::-1]).all() for i in range(200)
    ]
    assert 0.2 < np.mean(flipped) < 0.4


def test_training_batches_hold_every_image_once_an_epoch(folder):
    source = open_source(folder, "train")
    by_pixels = {
        train_image(source[i]["image"], np.random.default_rng(0), _Still, 16, 3).tobytes(): i for i in range(17)
    }
    batches = take(loader(source, batch_size=5), 9)  # three epochs
    seen = [[by_pixels[image.tobytes()] for batch in batches[e : e + 3] for image in batch["image"]] for e in (0, 3, 6)]
    assert all(len(set(epoch)) == 15 for epoch in seen)
    assert seen[0] != seen[1] != seen[2]
    labels = [label for batch in batches for label in batch["label"]]
    assert labels == [source[i]["label"] for epoch in seen for i in epoch]
    assert batches[0]["image"].shape == (5, 16, 16, 3)
    assert (batches[0]["image"].dtype, batches[0]["label"].dtype) == (np.uint8, np.int32)


class _Still:
    """Settings without randomness."""

    crop, train_interpolation, horizontal_flip, auto_augment, color_jitter = False, "bicubic", 0.0, "", 0.0


@pytest.mark.parametrize(("workers", "kind"), [(3, "threads"), (2, "processes")])
def test_workers_change_nothing(folder, workers, kind):
    source = open_source(folder, "train")
    batches = take(loader(source, CROPS, workers=workers, worker_kind=kind), 7)
    assert_same(batches, take(loader(source, CROPS), 7))
    assert {type(array) for batch in batches for array in batch.values()} == {np.ndarray}  # none in shared memory


@pytest.mark.parametrize(("workers", "kind"), [(0, "threads"), (3, "threads"), (2, "processes")])
def test_runs_go_on_where_they_were(folder, workers, kind):
    source = open_source(folder, "train")
    whole = take(loader(source, CROPS), 8)
    first = loader(source, CROPS, workers=workers, worker_kind=kind)
    take(first, 5)
    state = json.loads(json.dumps(first.get_state()))
    again = loader(source, CROPS, workers=workers, worker_kind=kind)
    again.set_state(state)
    assert_same(take(again, 3), whole[5:])


def test_processes_share_the_batches_of_one(folder):
    source = open_source(folder, "train")
    parts = [take(loader(source, CROPS, 6, share=i, shares=3), 4) for i in range(3)]
    joined = [{k: np.concatenate([p[step][k] for p in parts]) for k in parts[0][step]} for step in range(4)]
    assert_same(joined, take(loader(source, CROPS, 6), 4))
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 4 shares it is loaded in; got 6"):
        loader(source, CROPS, 6, share=0, shares=4)
    with pytest.raises(ValueError, match="batch_size 18 is more than the 17 training images"):
        loader(source, CROPS, 18)


def test_unreadable_images_are_replaced_and_counted(folder):
    damage(folder, "03", "04")
    source = open_source(folder, "train")
    batches = loader(source)
    first = take(batches, 6)
    assert {source.name(i)[-7:-4] for i in batches.unreadable} == {"/03", "/04"} or len(batches.unreadable) == 2
    assert all(batch["image"].shape == (5, 16, 16, 3) for batch in first)
    assert_same(take(loader(source, workers=2), 6), first)
    again = loader(source)
    again.set_state(batches.get_state())
    assert again.unreadable == batches.unreadable


def test_too_many_unreadable_images_end_the_run(folder):
    damage(folder, "03", "04", "05", "06", "07", "08", "09", "10")
    with pytest.raises(
        ImageError, match=r"^More than 2 images cannot be read: .*/class \d/\d\d.* Mend or remove them\.$"
    ):
        take(loader(open_source(folder, "train")), 6)


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_sees_every_image_once(folder, count):
    source = open_source(folder, "val")
    processor = eval_processor(CROPS, 16)
    options = {"batch_size": 4, "processor": processor, "shares": count}
    parts = [list(eval_loader(source, **options, share=i)) for i in range(count)]
    assert [len(part) for part in parts] == [2] * count
    images = [
        (image, label)
        for step in range(2)
        for part in parts
        for image, label, mask in zip(part[step]["image"], part[step]["label"], part[step]["mask"], strict=True)
        if mask
    ]
    assert [label for _, label in images] == [source[i]["label"] for i in range(7)]
    exact = processor([load_image(source.name(i)) for i in range(7)])
    mean, std = (np.float32(x) for x in (processor.image_mean, processor.image_std))
    got = (np.stack([image for image, _ in images]).astype(np.float32) / 255 - mean) / std
    np.testing.assert_allclose(got, exact, atol=1e-5)


def test_evaluation_masks_what_cannot_be_read(folder):
    (folder / "val" / "class 1" / "01.JPEG").write_bytes(b"no image")
    source = open_source(folder, "val")
    options = {"batch_size": 4, "processor": NatImageProcessor(size=16)}
    batches = list(eval_loader(source, **options, max_corrupt=1))
    assert [batch["mask"].tolist() for batch in batches] == [[True, True, True, False], [True, True, True, False]]
    with pytest.raises(ImageError, match=r"^Images cannot be read: .*01\.JPEG \(not an image"):
        list(eval_loader(source, **options))


def test_the_evaluation_processor_is_that_of_the_recipe():
    assert eval_processor(CROPS, 224).size == {"shortest_edge": math.floor(224 / 0.875)}
    assert eval_processor(CROPS, 224).crop_size == {"height": 224, "width": 224}
    assert eval_processor(PLAIN, 64).size == {"height": 64, "width": 64}
