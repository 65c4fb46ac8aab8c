"""Batches of images with objects: what is in them, and that nothing but seed and step decides it."""

import dataclasses
import io
import json
import time

import numpy as np
import PIL.Image
import pytest
from flax import nnx

from natjax.detection.inference import Detector
from natjax.errors import ImageError
from natjax.image_processing import NatImageProcessor
from natjax_train.augment.settings import BoxSettings, HostSettings, MaskSettings
from natjax_train.data import steps_per_epoch
from natjax_train.data.box_batches import box_eval_loader, box_train_loader
from natjax_train.data.coco import open_coco

pytestmark = pytest.mark.once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(HostSettings, MaskSettings, BoxSettings):
    """What a recipe has of all this."""


SETTINGS = Settings(scale_range=(0.6, 1.0), longest_edge=100)
WORKERS = [(3, "threads"), (1, "processes")]
WIDE, UPRIGHT = (40, 60), (60, 45)


def png(seed, size):
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(data, sizes, counts):
    """Writes images of these sizes with so many objects each: squares whose sides lie at 4 i and 3 i."""
    images, objects = [], []
    (data / "images/train").mkdir(parents=True)
    (data / "annotations").mkdir()
    for number, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
        (data / f"images/train/{number}.png").write_bytes(png(number, (height, width)))
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for i in range(count):
            x, y = 4 * i, 3 * i
            polygon = [x, y, x + 9, y, x + 9, y + 9, x, y + 9]
            one = {"id": len(objects), "image_id": number, "category_id": 1 + i % 2, "bbox": [x, y, 9, 9], "area": 81}
            objects.append(one | {"iscrowd": 0, "segmentation": [polygon]})
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    (data / "annotations/train.json").write_text(json.dumps(content))
    return open_coco(data, "train")


@pytest.fixture
def source(tmp_path):
    """Ten images that are wide and four that are upright, with 1 to 9 objects."""
    sizes = [WIDE, WIDE, WIDE, WIDE, UPRIGHT, WIDE, UPRIGHT] * 2
    return write(tmp_path, sizes, [1 + i % 9 for i in range(14)])


def loader(source, workers=0, worker_kind="threads", settings=SETTINGS, **options):
    options = {"batch_size": 4, "image_size": 64, "num_channels": 3, "seed": 1, "max_corrupt": 3} | options
    return box_train_loader(source, augmentation=settings, workers=workers, worker_kind=worker_kind, **options)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_what_a_batch_has(source):
    batches = loader(source)
    seen = set()
    for _ in range(8):
        batch = next(batches)
        height, width = batch["image"].shape[1:3]
        seen.add((height, width))
        assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
            "image": ((4, height, width, 3), "uint8"),
            "size": ((4, 2), "int32"),
            "boxes": ((4, 16, 4), "float32"),
            "class_labels": ((4, 16), "int32"),
            "valid": ((4, 16), "bool"),
            "masks": ((4, 16, height, width // 8), "uint8"),
        }
        masks = np.unpackbits(batch["masks"], axis=-1)
        for i, (rows, columns) in enumerate(batch["size"].tolist()):
            assert not batch["image"][i, rows:].any()
            assert not batch["image"][i, :, columns:].any()
            assert batch["image"][i, :rows, :columns].any(2).mean() > 0.9
            assert not masks[i, :, rows:].any()
            assert not masks[i, :, :, columns:].any()
            count = batch["valid"][i].sum()
            assert batch["valid"][i, :count].all()
            for name in ("boxes", "class_labels", "masks"):
                assert not batch[name][i, count:].any()
            assert (batch["boxes"][i, :, 2:] <= [columns, rows]).all()
            sides = batch["boxes"][i, :count, 2:] - batch["boxes"][i, :count, :2]
            assert (sides > 0).all()
            np.testing.assert_allclose(masks[i, :count].sum((1, 2)), sides.prod(1), rtol=0.45, atol=30)
    assert seen == {(64, 96), (96, 64)}  # 64 x 96 of 40 x 60, and 85 x 64 of 60 x 45


def test_squares_have_one_size(tmp_path):
    batches = loader(write(tmp_path, [(40, 40)] * 5, [1] * 5))
    assert {next(batches)["image"].shape for _ in range(4)} == {(4, 64, 64, 3)}


def test_epochs_have_all_images_of_a_group_together(source, monkeypatch):
    """Every image is in every epoch; 10 and 4 images make 3 and 1 batches, filled up by 2 of the ten."""
    assert steps_per_epoch(source, 4) == 4
    monkeypatch.setattr("natjax_train.data.box_batches.boxed_image", marked)
    batches, epochs = loader(source), []
    for _ in range(3):
        of_epoch = [next(batches)["number"].tolist() for _ in range(4)]
        assert all(len({source.groups[i] for i in batch}) == 1 for batch in of_epoch)
        epochs.append(of_epoch)
        assert set(np.ravel(of_epoch).tolist()) == set(range(14))
    assert epochs[0] != epochs[1] != epochs[2]
    where = {tuple(source.groups[batch[0]] for batch in epoch) for epoch in epochs}
    assert len(where) > 1  # the upright batch comes at another place


def test_images_that_fill_up_a_batch_are_seen_in_other_ways(tmp_path):
    source = write(tmp_path, [WIDE, WIDE, WIDE, UPRIGHT], [3] * 4)
    batches, alone = loader(source), loader(source, batch_size=1)
    views = {image.tobytes() for _ in range(2) for image in next(batches)["image"]}
    assert len(views) == 8
    assert {next(alone)["image"].tobytes() for _ in range(4)} < views


def test_images_that_devices_split_are_the_same_with_more_rows_of_zeros(source):
    whole, split = loader(source), loader(source, height_divisor=160)
    for batch, padded in ((next(whole), next(split)) for _ in range(4)):
        rows = batch["image"].shape[1]
        assert padded["image"].shape[1] == 160 > rows
        more = ((0, 0), (0, 160 - rows), (0, 0), (0, 0))
        masks = np.pad(batch["masks"], ((0, 0), *more[:3]))
        assert_same(padded, batch | {"image": np.pad(batch["image"], more), "masks": masks})


def marked(item, rng, settings, image_size, num_channels, *, canvases, max_objects, height_divisor):
    """Says which image it is by what is in the file."""
    return {"number": next(i for i in range(14) if item["image"] == png(i, item["size"]))}


def test_runs_go_on_with_other_workers_and_processes(source):
    batches = loader(source)
    whole = [next(batches) for _ in range(9)]
    states = []
    for workers in WORKERS:
        batches = loader(source, *workers)
        for want in whole[:6]:
            assert_same(next(batches), want)
        states.append(json.loads(json.dumps(batches.get_state())))
        batches.close()
    assert states == states[:1] * len(WORKERS)
    parts = [loader(source, share=i, shares=2) for i in range(2)]
    for part in parts:
        part.set_state(states[0])
    for want in whole[6:]:
        found = [next(part) for part in parts]
        assert_same({name: np.concatenate([one[name] for one in found]) for name in want}, want)


def test_threads_read_one_batch_ahead_each(source, monkeypatch):
    made = []
    monkeypatch.setattr("natjax_train.data.box_batches.boxed_image", lambda *_, **__: made.append(1) or {"n": 0})
    batches = loader(source, workers=3)
    next(batches)
    before = 0
    while before < len(made):
        before = len(made)
        time.sleep(0.3)
    batches.close()
    assert len(made) == 4 * (1 + 3)


def test_seeds_and_epochs_differ(tmp_path):
    source = write(tmp_path, [WIDE], [1])
    runs = [loader(source, batch_size=1, seed=seed) for seed in (1, 2)]
    assert len({next(batches)["image"].tobytes() for batches in runs for _ in range(2)}) == 4


def test_of_many_objects_a_random_part_is_learnt(tmp_path):
    source = write(tmp_path, [(200, 200)], [20])
    settings = dataclasses.replace(SETTINGS, max_objects=3, crop_prob=0.0, horizontal_flip=0.0, scale_range=(1.0, 1.0))
    batches = loader(source, settings=settings, batch_size=1)
    parts = []
    for _ in range(8):
        batch = next(batches)
        assert batch["valid"].tolist() == [[True] * 3]
        numbers = batch["boxes"][0, :, 0] / (4 * 64 / 200)
        np.testing.assert_allclose(numbers, np.rint(numbers), atol=1e-5)
        assert (np.rint(numbers).astype(int) % 2 == batch["class_labels"][0]).all()
        parts.append(tuple(np.rint(numbers).tolist()))
    assert len(set(parts)) > 5


def test_images_that_are_lost_are_replaced_by_their_like(source):
    for number in (4, 11):  # half of those that are upright
        with open(source.name(number), "wb") as file:
            file.write(b"")
    messages = []
    batches = loader(source, report=messages.append, seed=0)
    for _ in range(8):
        batch = next(batches)
        assert batch["valid"].any()
    assert batches.unreadable == {4, 11}
    assert len(messages) == 2
    batches = loader(source, max_corrupt=0)
    with pytest.raises(ImageError, match="Images cannot be read"):
        [next(batches) for _ in range(8)]


def test_images_that_change_later_are_unreadable(source):
    with open(source.name(0), "wb") as file:
        file.write(png(0, (20, 20)))
    batches = loader(source)
    for _ in range(4):
        next(batches)
    assert batches.unreadable == {0}


def test_images_without_objects_are_trained_on(tmp_path):
    source = write(tmp_path, [WIDE] * 4, [0, 1, 0, 0]).learnable(keep_empty=True, max_objects=100)
    batch = next(loader(source, settings=dataclasses.replace(SETTINGS, crop_prob=0.0)))
    assert batch["valid"].shape == (4, 8)
    assert sorted(batch["valid"].sum(1).tolist()) == [0, 0, 0, 1]
    for name in ("boxes", "class_labels", "masks"):
        assert not batch[name][~batch["valid"]].any()


class Nothing(nnx.Module):
    pass


@pytest.mark.parametrize("divisor", [None, 16])
def test_evaluation_sees_what_detect_sees(source, divisor):
    processor = NatImageProcessor.object_detection(100, 64)
    plain = dataclasses.replace(processor, do_rescale=False, do_normalize=False)
    detector = Detector(Nothing(), plain, size_divisor=divisor)
    batches, seen = box_eval_loader(source, batch_size=3, processor=processor, divisor=divisor), []
    for batch in batches:
        assert batch["image"].dtype == np.uint8
        assert batch["size"].dtype == np.int32
        for i, index in enumerate(batch["index"].tolist()):
            assert batch["mask"][i] == (index >= 0)
            if index < 0:
                assert not batch["image"][i].any()
                continue
            want = detector.prepare(source[index]["image"])
            np.testing.assert_array_equal(batch["image"][i], want.pixels)
            np.testing.assert_array_equal(batch["scale"][i], want.scale_factors)
            assert tuple(batch["size"][i].tolist()) == want.image_size
            seen.append(index)
    assert sorted(seen) == list(range(14))
    parts = [list(box_eval_loader(source, batch_size=4, processor=processor, share=i, shares=2)) for i in (0, 1)]
    whole = list(box_eval_loader(source, batch_size=4, processor=processor, workers=1, worker_kind="processes"))
    for *found, want in zip(*parts, whole, strict=True):
        assert_same({name: np.concatenate([one[name] for one in found]) for name in want}, want)


def test_evaluation_leaves_out_what_cannot_be_read(source):
    with open(source.name(3), "wb") as file:
        file.write(b"")
    batches = box_eval_loader(
        source, batch_size=4, processor=NatImageProcessor.object_detection(100, 64), max_corrupt=1
    )
    found = [index for batch in batches for index in batch["index"][batch["mask"]].tolist()]
    assert sorted(found) == [i for i in range(14) if i != 3]
    assert batches.unreadable == {3}
