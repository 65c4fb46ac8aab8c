"""Folders of images and masks: what is found, and what is refused before anything is learnt."""

import io

import numpy as np
import PIL.Image
import pytest

from natjax.errors import ImageError, MaskError
from natjax_train.data.masks import open_masks, read_classes

pytestmark = pytest.mark.once

CLASSES = ("sky", "sea", "sand")


def write(data, split, name, mask, image=None, mode="L"):
    """Writes an image of a mask's size and the mask."""
    mask = np.asarray(mask, np.uint8)
    for kind in ("images", "masks"):
        (data / kind / split / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.repeat(40 * mask[..., None], 3, -1) if image is None else image
    PIL.Image.fromarray(pixels).save(data / "images" / split / f"{name}.png")
    picture = PIL.Image.fromarray(mask)
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    picture.convert(mode).save(data / "masks" / split / f"{name}.png")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nsea\n\nsand\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(4):
            write(tmp_path, split, f"coast/{i}", rng.integers(0, 3, (8 + i, 10)))
    return tmp_path


def inspected(data, split="train", **options):
    source = open_masks(data, split, **options)
    source.inspect()
    return source


def test_what_is_found(data):
    mask = np.array([[0, 1], [2, 255]])
    write(data, "train", "palette", mask, mode="P")
    source = inspected(data)
    assert source.class_names == CLASSES
    assert source.name(4).endswith("palette.png")
    assert source.class_counts == (5, 5, 5)
    np.testing.assert_array_equal(source[4]["mask"], mask)
    assert source[4]["mask"].dtype == np.uint8
    assert source[4]["image"].startswith(b"\x89PNG")
    assert source.sizes.tolist() == [[8, 10], [9, 10], [10, 10], [11, 10], [2, 2]]


def test_reduced_zero_label(data):
    write(data, "train", "zero", [[0, 1], [3, 255]])
    source = inspected(data, reduce_zero_label=True)
    np.testing.assert_array_equal(source[4]["mask"], [[255, 0], [2, 255]])


def test_colours_of_masks(data):
    mask = np.zeros((2, 2), np.uint8)
    assert inspected(data).palette is None  # grey
    write(data, "train", "a", mask, mode="P")
    source = inspected(data)
    assert source.palette.tolist() == source.part([0], ()).palette.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert inspected(data, reduce_zero_label=True).palette.tolist() == [[3, 4, 5], [6, 7, 8], [9, 10, 11]]
    for palette in (np.repeat(np.arange(256), 3), [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 1, 2, 3]):
        picture = PIL.Image.fromarray(mask).convert("P")
        picture.putpalette(list(palette))
        picture.save(data / "masks" / "train" / "a.png")
        assert inspected(data).palette is None


def test_a_part(data):
    part = inspected(data).part([3, 1], ("held out",))
    part.inspect()
    assert [part[i]["mask"].shape for i in range(2)] == [(11, 10), (9, 10)] == list(map(tuple, part.sizes.tolist()))
    assert part.notes == ("held out",)


def colours(data):
    PIL.Image.new("RGB", (10, 8)).save(data / "masks/train/coast/0.png")


def another_size(data):
    PIL.Image.new("L", (10, 7)).save(data / "masks/train/coast/0.png")


def beyond(data):
    write(data, "train", "coast/0", [[0, 7, 9]])


def beyond_a_byte(data):
    PIL.Image.fromarray(np.full((8, 10), 300, np.uint16)).save(data / "masks/train/coast/0.png")


def no_mask(data):
    (data / "masks/train/coast/0.png").unlink()


def no_image(data):
    (data / "images/train/coast/0.png").unlink()


def no_masks(data):
    for path in (data / "masks/train/coast").iterdir():
        path.unlink()


def no_folder(data):
    no_masks(data)
    (data / "masks/train/coast").rmdir()
    (data / "masks/train").rmdir()


def two_images(data):
    PIL.Image.new("RGB", (10, 8)).save(data / "images/train/coast/0.jpg")


def all_ignored(data):
    for path in (data / "masks/train").rglob("*.png"):
        with PIL.Image.open(path) as mask:
            size = mask.size
        PIL.Image.new("L", size, 255).save(path)


def all_unreadable(data):
    for path in (data / "masks/train/coast").iterdir():
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (
            colours,
            MaskError,
            r"1 mask of no classes: .*0.png: is an image of mode RGB, and a mask has one number per pixel",
        ),
        (another_size, MaskError, r"another size than the image: .*0.png \(7 x 10, image 8 x 10\)\.$"),
        (
            beyond,
            MaskError,
            r"0.png \(as 9\)\. The 3 classes have the numbers 0 to 2, and 255 is ignored: .*--reduce-zero-label",
        ),
        (beyond_a_byte, MaskError, "has numbers from 300 to 300; classes of masks are 0 to 255"),
        (
            no_mask,
            MaskError,
            r"1 image in .*images.train without a mask: coast.0\.png\. A mask has the path of its image",
        ),
        (no_image, MaskError, r"1 mask in .*masks.train without an image: coast.0\.png\."),
        (no_masks, MaskError, "masks.train has no masks in it: it should hold a PNG for every image in"),
        (no_folder, MaskError, "masks has no train/ in it"),
        (two_images, ImageError, r"has coast.0\.\w+ and coast.0\.\w+, and a mask belongs to one image"),
        (all_ignored, MaskError, "The 4 masks in .*train have no pixel of a class, only 255, which is ignored: write"),
        (all_unreadable, ImageError, r"None of the 4 images in .* can be read: .*the file is empty"),
    ],
)
def test_what_is_refused(data, spoil, kind, message):
    spoil(data)
    with pytest.raises(kind, match=message):
        inspected(data)


def test_unreadable_files_are_counted_and_named(data):
    (data / "masks/train/coast/0.png").write_bytes(b"")
    (data / "images/train/coast/1.png").write_bytes(b"\x89PNG nothing")
    source = inspected(data)
    assert len(source.notes) == 1
    assert source.notes[0].startswith("2 images that cannot be read, or whose masks cannot: ")
    assert "0.png: the file is empty" in source.notes[0]
    assert "1.png" in source.notes[0]
    assert source.sizes.tolist() == [[0, 0], [0, 0], [10, 10], [11, 10]]
    with pytest.raises(ImageError):
        source[0]


def test_a_mask_that_changes_later_is_refused(data):
    source = inspected(data)
    beyond(data)
    with pytest.raises(MaskError, match="numbers beyond the 3 classes"):
        source[0]


def test_images_that_lie_on_their_side_have_upright_masks(data):
    buffer = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (8, 10)).save(buffer, "JPEG", exif=exif)
    (data / "images/train/coast/0.png").write_bytes(buffer.getvalue())
    assert inspected(data).sizes[0].tolist() == [8, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "classes.txt: cannot be read: No such file"),
        ("sky\nsky\nsea", "names sky more than once"),
        ("sky\n", "has 1 name; a segmenter needs two classes"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_files_of_classes(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ImageError, match=message):
        read_classes(path)


def test_names_that_are_given_beside_others(data):
    own = read_classes(data / "classes.txt")
    renamed = tuple(f"new {name}" for name in own)
    assert open_masks(data, "train", renamed).class_names == renamed
    with pytest.raises(MaskError, match=f"names {len(own)} classes, --classes .* 150: leave one of them out"):
        open_masks(data, "train", tuple(map(str, range(150))))


def test_255_is_ignored_and_no_class(data):
    (data / "classes.txt").unlink()
    assert len(open_masks(data, "train", tuple(map(str, range(254)))).class_names) == 254
    with pytest.raises(MaskError, match=r"masks.train has 255 classes; there can be 254 at most: .* Merge some"):
        open_masks(data, "train", tuple(map(str, range(255))))


def test_ade20ks_folders(data):
    for kind, called in (("images", "images"), ("masks", "annotations")):
        (data / kind / "train").rename(data / kind / "training")
        (data / kind / "val").rename(data / kind / "validation")
        (data / kind).rename(data / called)
    assert len(open_masks(data, "train")) == len(open_masks(data, "val", CLASSES)) == 4


def test_progress_is_told(data, monkeypatch):
    monkeypatch.setattr("natjax_train.data.masks._SECONDS_BETWEEN_REPORTS", -1.0)
    messages = []
    open_masks(data, "train").inspect(messages.append)
    assert messages[-1] == "checked 4 of 4 masks"


def test_it_is_no_folder(tmp_path):
    with pytest.raises(ImageError, match="no such folder; give a folder that holds images/ and masks/"):
        open_masks(tmp_path / "none", "train")
