"""Data sets with COCO's annotations: what is found, and what is refused before anything is learnt."""

import io
import json

import numpy as np
import PIL.Image
import pytest
from faster_coco_eval import mask as masks

from natjax.detection.coco import counts_of, run_lengths
from natjax.errors import ImageError
from natjax_train.data.coco import has_split, open_coco
from natjax_train.data.coco_images import decode_annotated
from natjax_train.data.plausible import check_splits, remarks
from natjax_train.data.split import split_images

pytestmark = pytest.mark.once

SIZE = (40, 60)  # height, width
SQUARE = [10, 5, 30, 5, 30, 25, 10, 25]


def image_file(size=SIZE, kind="PNG", **options):
    file = io.BytesIO()
    PIL.Image.new("RGB", size[::-1], (200, 100, 50)).save(file, kind, **options)
    return file.getvalue()


def an_object(number, image, **changes):
    entry = {"id": number, "image_id": image, "category_id": 3, "bbox": [10, 5, 20, 20], "area": 400, "iscrowd": 0}
    return entry | {"segmentation": [SQUARE]} | changes


def document(count=4):
    """Image i + 1 has i % 3 objects: one of them is a cat, two of them a cat and a dog."""
    images = [{"id": 10 + i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(count)]
    found = [(image["id"], k) for i, image in enumerate(images) for k in range(i % 3)]
    objects = [an_object(n, image, category_id=(7, 3)[k]) for n, (image, k) in enumerate(found)]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": " dog"}]
    return {"images": images, "annotations": objects, "categories": categories}


def write(data, split="train", content=None, path="annotations/{}.json", folder="images/{}"):
    content = document() if content is None else content
    (data / folder.format(split)).mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        (data / folder.format(split) / image["file_name"]).write_bytes(image_file())
    file = data / path.format(split)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, split)
    return tmp_path


def changed(data, change):
    """Changes the training annotations."""
    path = data / "annotations" / "train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def learnable(source, *, keep_empty=False, max_objects=100):
    return source.learnable(keep_empty=keep_empty, max_objects=max_objects)


def test_what_is_found(data):
    source = open_coco(data, "train")
    source.inspect()
    assert source.class_names == ("dog", "cat")
    assert source.category_ids == (3, 7)
    assert source.ids.tolist() == [10, 11, 12, 13]
    assert source.sizes.tolist() == [list(SIZE)] * 4
    assert source.object_counts.tolist() == [0, 1, 2, 0]
    assert source.class_counts == (1, 2)
    assert source.max_objects == 2
    assert source.notes == ()
    item = source[2]
    assert item["image"] == image_file()
    assert item["size"] == SIZE
    assert item["boxes"].tolist() == [[10, 5, 30, 25]] * 2
    assert item["boxes"].dtype == np.float32
    assert item["class_labels"].tolist() == [1, 0]
    want = np.zeros(SIZE, bool)
    want[5:25, 10:30] = True
    np.testing.assert_array_equal(masks.decode(item["masks"][0]), want)


@pytest.mark.parametrize(
    ("train", "val", "path", "folder"),
    [
        ("train", "val", "annotations/instances_{}2017.json", "{}2017"),
        ("train", "val", "annotations/instances_{}2017.json", "images/{}2017"),
        ("train", "valid", "{}/_annotations.coco.json", "{}"),
        ("train", "validation", "annotations/{}.json", "images/{}"),
    ],
)
def test_layouts(tmp_path, train, val, path, folder):
    write(tmp_path, train, path=path, folder=folder)
    assert not has_split(tmp_path, "val")
    write(tmp_path, val, path=path, folder=folder)
    for split in ("train", "val"):
        assert has_split(tmp_path, split)
        open_coco(tmp_path, split).inspect()
    check_splits(open_coco(tmp_path, "train"), open_coco(tmp_path, "val"))


def test_two_layouts_at_once(data):
    write(data, "train", path="{}/_annotations.coco.json", folder="{}")
    (note,) = open_coco(data, "train").notes
    assert "train.json is used" in note


def test_what_mmdetection_leaves_out_of_training(data):
    outside, empty, thin = [60, 0, 5, 5], {"area": 0}, {"bbox": [10, 5, 0.9, 20]}

    def change(content):
        content["annotations"] += [
            an_object(20 + i, 13, **changes)
            for i, changes in enumerate(
                (
                    {"iscrowd": 1, "segmentation": {"size": list(SIZE), "counts": [100, 300, 2000]}},
                    {"ignore": 1},
                    {"bbox": outside},
                    empty,
                    thin,
                    {"segmentation": [[1, 2, 3, 4]]},  # which COCO's tools take for a box
                )
            )
        ]

    changed(data, change)
    whole = open_coco(data, "train")
    source = learnable(whole)
    assert source.ids.tolist() == [11, 12]
    assert [note.partition(": ")[2] for note in source.notes] == [
        "objects left out of training: 1 crowds, 1 to be ignored, 1 outside of their images, 1 of area 0, "
        "1 with a side of less than a pixel, 1 without a polygon of three points",
        "images left out of training: 2 without objects (keep_empty)",
    ]
    kept = learnable(whole, keep_empty=True, max_objects=1)
    assert len(kept) == 4
    assert kept[3]["boxes"].shape == (0, 4)
    assert kept.notes[1].endswith("images with more than 1 objects, of which a random part is learnt: 1")
    truth = whole.ground_truth()
    assert len(truth["annotations"]) == 9
    assert [one["iscrowd"] for one in truth["annotations"]] == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert masks.decode(truth["annotations"][-1]["segmentation"]).sum() == 0


def test_small_images_are_not_trained_on(data):
    changed(data, lambda content: content["images"][1].update(height=31))
    source = learnable(open_coco(data, "train"))
    assert source.ids.tolist() == [12]
    assert "left out of training: 1 with a side of less than 32 pixels, 2 without objects" in source.notes[0]


def test_ground_truth_is_what_cocos_tools_read(data, tmp_path):
    """Numbers of objects begin at 0 in this file, which evaluation would take for no object."""
    from faster_coco_eval import COCO

    truth = open_coco(data, "train").ground_truth()
    with pytest.warns(UserWarning, match="annotation id 0"):
        want = COCO(str(data / "annotations" / "train.json"))
    got = COCO()
    got.dataset = truth
    got.createIndex()
    assert sorted(got.anns) == [1, 2, 3]
    assert got.getCatIds() == sorted(want.getCatIds())
    for image in want.getImgIds():
        pairs = zip(got.imgToAnns[image], want.imgToAnns[image], strict=True)
        for one, other in pairs:
            assert {**one, "id": 0, "segmentation": 0} == {**other, "id": 0, "segmentation": 0}
            np.testing.assert_array_equal(got.annToMask(one), want.annToMask(other))


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_masks_as_run_lengths(data, kind):
    mask = np.random.default_rng(0).random(SIZE) < 0.5
    text = run_lengths(mask)
    counts = counts_of(text["counts"], mask.size)
    segmentation = text if kind == "text" else {"size": list(SIZE), "counts": counts}
    changed(data, lambda content: content["annotations"][0].update(segmentation=segmentation))
    np.testing.assert_array_equal(masks.decode(open_coco(data, "train")[1]["masks"][0]), mask)


def test_areas_and_crowds_that_are_not_said(data):
    def change(content):
        one, other, _ = content["annotations"]
        del one["area"], one["iscrowd"]
        other.update(area=None, iscrowd=None)

    changed(data, change)
    truth = open_coco(data, "train").ground_truth()["annotations"]
    assert [(one["area"], one["iscrowd"]) for one in truth] == [(400, 0)] * 3


def test_boxes_of_the_largest_numbers(data):
    changed(data, annotation(bbox=[-1e308, -1e308, 1.7e308, 1.7e308]))
    assert open_coco(data, "train")[1]["boxes"].tolist() == [[-(2**31), -(2**31), 2**31, 2**31]]


def test_validation_has_the_classes_of_training(data):
    changed(data, lambda content: content["categories"].reverse())
    names = ("cat", "dog")
    source = open_coco(data, "train", names)
    assert (source.class_names, source.category_ids) == (names, (7, 3))
    assert source[1]["class_labels"].tolist() == [0]
    with pytest.raises(ImageError, match="other categories than the training images: also dog and not cow, ant"):
        open_coco(data, "train", ("cat", "cow", "ant"))


def test_held_out_images(tmp_path):
    write(tmp_path, "train", document(20))
    parts = split_images(open_coco(tmp_path, "train"), 0.25, 0)
    assert len(parts["val"]) == 5
    assert sorted([*parts["train"].ids, *parts["val"].ids]) == list(range(10, 30))
    numbers = {one["image_id"] for one in parts["val"].ground_truth()["annotations"]}
    assert numbers <= set(parts["val"].ids.tolist())
    again = split_images(open_coco(tmp_path, "train"), 0.25, 1)
    assert again["val"].ids.tolist() != parts["val"].ids.tolist()
    train = learnable(parts["train"])
    assert train.object_counts.min() == 1
    assert not remarks(parts["val"], train)


def test_images_as_they_are_stored(data):
    """Annotations of images that lie on their side are of the upright image, or else of the stored one."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    lying = image_file(SIZE[::-1], "JPEG", exif=exif)
    (data / "images/train/0.png").write_bytes(lying)
    (data / "images/train/1.png").write_bytes(image_file(SIZE, "JPEG", exif=exif))
    source = open_coco(data, "train")
    source.inspect()
    (note,) = source.notes
    assert note.startswith("1 image taken as stored, not turned upright (EXIF), which their sizes are of: 1.png")
    assert [decode_annotated(source[i]["image"], SIZE, 3).size[::-1] for i in (0, 1)] == [SIZE, SIZE]
    with pytest.raises(ImageError, match=r"The image: is 60 x 40 .*, and its annotations are of 50 x 40"):
        decode_annotated(lying, (50, 40), 3)


def annotation(**changes):
    return lambda content: content["annotations"][0].update(changes)


def image(**changes):
    return lambda content: content["images"][0].update(changes)


def without(key, of="annotations"):
    return lambda content: content[of][0].pop(key)


def again(key, **changes):
    return lambda content: content[key].append({**content[key][0], **changes})


def segmentation(value):
    return annotation(segmentation=value)


HUGE = 10**400
DAMAGED = run_lengths(np.eye(*SIZE, dtype=bool))
OVERFLOW = "P[2" + (2**17 - 1) * "PPPPPP4"  # 2400, and multiples of 2^32 whose sum is 2^64: 2400 in 64 bits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("annotations"), r"has no lists of annotations, .*; it has images, categories\."),
        (lambda content: content.update(images={}), "has no lists of images"),
        (lambda content: content.update(images=[]), "its list of images is empty"),
        (lambda content: content.update(annotations=[]), "its list of annotations is empty"),
        (without("bbox"), r"1 entry in annotations without bbox: number 0\."),
        (without("file_name", "images"), "1 entry in images without file_name"),
        (lambda content: content["annotations"].append(3), "1 entry in annotations without id and image_id and"),
        (annotation(id="a"), r"1 entry in annotations whose id is no whole number: number 0 \('a'\)"),
        (again("images"), "1 image with the id of another one: 10; 1 image with the file of another one: 0.png"),
        (again("annotations"), r"1 annotation with the id of another one: 0\."),
        (again("categories"), r"1 category with the id of another one: cat \(7\)"),
        (again("categories", id=9), r"1 category with the name of another one: cat \(9\)"),
        (lambda content: content["categories"][0].update(name=""), "1 category without a name: 7"),
        (annotation(image_id=99), r"1 annotation of an image that is not in the file: 0 \(image 99\)"),
        (annotation(category_id=99), r"1 annotation of a category that is not in the file: 0 \(category 99\)"),
        (annotation(bbox=[float("nan"), 0, 1, 1]), r"whose bbox is not four finite numbers: 0 \(\[nan, 0, 1, 1\]\)"),
        (annotation(bbox=[1, 2, 3]), "whose bbox is not four finite numbers"),
        (annotation(bbox=[1, 2, 3, HUGE]), "whose bbox is not four finite numbers"),
        (annotation(bbox="1234"), "whose bbox is not four finite numbers"),
        (annotation(area="big"), "whose area is no finite number"),
        (annotation(iscrowd=2), "whose iscrowd is not 0 or 1"),
        (without("segmentation"), "1 annotation without a segmentation, and detectors learn masks here: 0"),
        (segmentation([]), "without a segmentation"),
        (segmentation(SQUARE), "whose segmentation is neither polygons nor run lengths"),
        (segmentation([[1, 2, 3, 4, 5]]), "with a polygon that is not x, y, x, y"),
        (segmentation([[1, 2, 3, 4, 5, float("inf")]]), "with a polygon that is not x, y, x, y"),
        (segmentation([[1, 2, 3, 4, 5, 1e9]]), r"with a polygon far outside of the image: 0 \(image 40 x 60\)"),
        (
            segmentation({"size": [60, 40], "counts": [2400]}),
            r"another size than the image: 0 \(60 x 40, image 40 x 60\)",
        ),
        (segmentation({"size": [40, 60], "counts": [2399]}), "with a damaged mask"),
        (segmentation({"size": [40, 60], "counts": [2401, -1]}), "with a damaged mask"),
        (segmentation({"size": [40, 60]}), "with a damaged mask"),
        (segmentation(DAMAGED | {"counts": DAMAGED["counts"][:-1]}), "with a damaged mask"),
        (segmentation(DAMAGED | {"counts": DAMAGED["counts"] + "P"}), "with a damaged mask"),
        (segmentation(DAMAGED | {"counts": "é" + DAMAGED["counts"]}), "with a damaged mask"),
        (segmentation(DAMAGED | {"counts": "o" * 50 + "0"}), "with a damaged mask"),
        (segmentation(DAMAGED | {"counts": OVERFLOW}), "with a damaged mask"),
        (image(height=0), r"1 image of an impossible size: 0.png \(height 0, width 60\)"),
        (image(width=2.5), "1 image of an impossible size"),
        (image(width=2**40), "1 image of an impossible size"),
        *(
            (image(file_name=name), "1 image whose file_name is no path within the folder of the images")
            for name in (
                "../val/0.png",
                "/etc/passwd",
                "a/../../b.png",
                "a\\..\\..\\b.png",
                "C:b.png",
                "",
                5,
                "\0",
                "\ud800",
            )
        ),
        (image(file_name="ö" * 2049), r"1 image whose file_name has more than 4,096 bytes: ö{80}\.\.\."),
    ],
)
def test_what_is_refused(data, change, message):
    changed(data, change)
    with pytest.raises(ImageError, match=message):
        open_coco(data, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "is no JSON, or only a part of it: Expecting value"),
        (b"\xff\xfe\xff", "is no JSON, or only a part of it"),
        ("", "is no JSON, or only a part of it"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "is no JSON, or only a part of it"),
        ("3", "has no lists of images and categories and annotations"),
        (
            '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
            "is a list of results, which have scores",
        ),
        ("[1]", "is a list, and no annotations: those are an object with images, categories, annotations"),
    ],
)
def test_files_that_are_no_annotations(data, content, message):
    (data / "annotations/train.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ImageError, match=message):
        open_coco(data, "train")


def test_all_problems_are_said_at_once(data):
    changed(
        data, lambda content: [one.update(bbox=[1]) for one in content["annotations"]] and annotation(area=[])(content)
    )
    with pytest.raises(
        ImageError, match=r"has 3 annotations whose bbox is not .*: 0 \(\[1\]\), 1 \(\[1\]\), 2 \(\[1\]\)\. Mend"
    ):
        open_coco(data, "train")


def test_missing_images_are_counted(data):
    for name in ("0.png", "3.png"):
        (data / "images/train" / name).unlink()
    with pytest.raises(ImageError, match=r"2 of the 4 images of .*train.json are not in .*train: 0\.png, 3\.png\."):
        open_coco(data, "train").inspect()


def test_names_neither_steer_a_terminal_nor_fill_it(data):
    changed(data, image(file_name="\x1b[2J" + "a" * 4000))
    with pytest.raises(ImageError, match=r"are not in .*train: \\x1b\[2Ja{196}\.\.\.\.$"):
        open_coco(data, "train").inspect()
    name = "\x1b[2J.png"
    changed(data, image(file_name=name))
    (data / "images/train" / name).write_bytes(b"")
    source = open_coco(data, "train")
    source.inspect()
    assert r"\x1b[2J.png: the file is empty" in source.notes[0]
    assert source.notes[0].isprintable()


def test_images_of_other_sizes(data):
    (data / "images/train/1.png").write_bytes(image_file((20, 30)))
    with pytest.raises(ImageError, match=r"1 of the 4 images of .* another size .*: 1\.png \(20 x 30, not 40 x 60\)"):
        open_coco(data, "train").inspect()


def test_images_that_cannot_be_read(data):
    (data / "images/train/1.png").write_bytes(b"")
    source = open_coco(data, "train")
    source.inspect()
    assert source.notes[0].startswith("1 image that cannot be read: ")
    for i in range(4):
        (data / f"images/train/{i}.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"None of the 4 images in .* can be read"):
        open_coco(data, "train").inspect()


def test_progress_is_told(data, monkeypatch):
    monkeypatch.setattr("natjax_train.data.coco_images._SECONDS_BETWEEN_REPORTS", -1.0)
    messages = []
    open_coco(data, "train").inspect(messages.append)
    assert messages[-1] == "checked 4 of 4 images"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            annotation(bbox=[0.1, 0.1, 0.4, 0.4]),
            r"there is nothing to learn; of 3 objects are 3 with a side of less than a pixel\. Boxes are x, y",
        ),
        (image(height=31), "all images with objects have a side of less than 32 pixels"),
    ],
)
def test_nothing_to_learn(data, change, message):
    def change_all(content):
        for key in ("images", "annotations"):
            for one in content[key]:
                change({key: [one], "images": [one], "annotations": [one]})

    changed(data, change_all)
    source = open_coco(data, "train")
    with pytest.raises(ImageError, match=message):
        learnable(source)


def test_folders_that_are_no_data(tmp_path):
    with pytest.raises(
        ImageError, match=r"no such folder; give a folder that holds annotations/instances_train2017\.json"
    ):
        open_coco(tmp_path / "none", "train")
    with pytest.raises(ImageError, match=r"has no annotations for val: .* --val-fraction 0.1 holds out a tenth"):
        open_coco(tmp_path, "val")
    write(tmp_path)
    (tmp_path / "images").rename(tmp_path / "pictures")
    with pytest.raises(ImageError, match=r"train.json has no images: there is no .*images.train/\."):
        open_coco(tmp_path, "train")
