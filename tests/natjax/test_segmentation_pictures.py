"""Palettes and pictures of class maps."""

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from natjax.labels import ade20k, cityscapes
from natjax.segmentation import (
    coloured,
    generated,
    load_palette,
    overlay,
    palette_for,
    read_palette,
    shares,
    with_legend,
)

pytestmark = pytest.mark.once

MAP = np.array([[0, 0, 1], [2, 255, 1]], np.uint8)
RGB = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def test_palette_of_ade20k():
    palette = load_palette("ade20k")
    assert palette.names == ade20k()
    of = dict(zip(palette.names, palette.colours.tolist(), strict=True))
    assert of["wall"] == [120, 120, 120]
    assert of["road"] == of["skyscraper"] == [140, 140, 140]
    assert of["person"] == [150, 5, 61]
    assert of["flag"] == [92, 0, 255]
    assert len(np.unique(palette.colours, axis=0)) == 149  # road and skyscraper share theirs


def test_palette_of_cityscapes():
    palette = load_palette("cityscapes")
    assert palette.names == cityscapes()
    of = dict(zip(palette.names, palette.colours.tolist(), strict=True))
    assert of["road"] == [128, 64, 128]
    assert of["bicycle"] == [119, 11, 32]
    assert len(np.unique(palette.colours, axis=0)) == 19


def test_the_number_of_classes_chooses_the_palette():
    np.testing.assert_array_equal(palette_for(150), load_palette("ade20k").colours)
    np.testing.assert_array_equal(palette_for(19), load_palette("cityscapes").colours)
    np.testing.assert_array_equal(palette_for(7), generated(7))
    np.testing.assert_array_equal(palette_for(7, "cityscapes"), load_palette("cityscapes").colours[:7])


def test_generated_palettes_are_distinct_and_begin_alike():
    assert len(np.unique(generated(1000), axis=0)) == 1000
    np.testing.assert_array_equal(generated(1000)[:5], generated(5))
    far = np.abs(np.diff(generated(64).astype(int), axis=0)).sum(1)
    assert far.min() > 120  # neighbours in the order are not alike
    with pytest.raises(ValueError, match="1 to 4096 classes; got 0"):
        generated(0)


def test_palette_of_a_text_file(tmp_path):
    file = tmp_path / "palette.txt"
    file.write_text("# two ways\n255 0 0 red car\n\n#00ff00\n0, 0, 255  sea \n")
    palette = read_palette(file)
    np.testing.assert_array_equal(palette.colours, RGB)
    assert palette.names == ("red car", "", "sea")


def test_palette_of_a_png(tmp_path):
    coloured(MAP, RGB).save(tmp_path / "map.png")
    np.testing.assert_array_equal(palette_for(3, tmp_path / "map.png"), RGB)
    PIL.Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"rgb\.png: not a palette: a PNG without one"):
        read_palette(tmp_path / "rgb.png")


@pytest.mark.parametrize("line", ["255 0", "256 0 0 red", "#ff00", "#gg0000", "red", "-1 0 0"])
def test_what_is_no_palette_is_refused(line, tmp_path):
    file = tmp_path / "palette.txt"
    file.write_text(f"1 2 3 one\n{line}\n")
    with pytest.raises(ValueError, match=r"palette\.txt, line 2: not a colour: .* `r g b name` or `#rrggbb name`"):
        read_palette(file)


def test_no_palette_at_all_is_refused(tmp_path):
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(ValueError, match="there is no colour in it"):
        load_palette(tmp_path / "empty")
    with pytest.raises(ValueError, match="neither text nor a PNG"):
        load_palette(tmp_path / "binary")
    with pytest.raises(ValueError, match=r"a palette is ade20k or cityscapes, or a file. Did you mean cityscapes"):
        load_palette("cityscape")
    with pytest.raises(ValueError, match="the palette cityscapes has 19 colours, the model 21 classes"):
        palette_for(21, "cityscapes")


def test_coloured_maps_hold_class_indices(tmp_path):
    coloured(MAP, RGB).save(tmp_path / "map.png")
    with PIL.Image.open(tmp_path / "map.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), MAP)
        colours = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(colours, np.concatenate([RGB, [[0, 0, 0]]])[[[0, 0, 1], [2, 3, 1]]])


@pytest.mark.parametrize("count", [4, 300])
def test_coloured_maps_of_jax_arrays(count):
    palette = generated(count)
    assert coloured(jnp.asarray(MAP), palette).tobytes() == coloured(MAP, palette).tobytes()


def test_coloured_maps_of_more_classes_than_a_palette_holds():
    image = coloured(MAP.astype(np.uint16) + 290, generated(300))
    assert image.mode == "RGB"
    assert image.getpixel((2, 0)) == tuple(generated(300)[291])


def test_overlay():
    image = PIL.Image.new("RGB", (3, 2), (100, 100, 100))
    assert overlay(image, MAP, RGB, 0.5).getpixel((2, 0)) == (50, 177, 50)
    assert overlay(image, MAP, RGB, 0.0).getpixel((2, 0)) == (100, 100, 100)
    with pytest.raises(ValueError, match="of one size; got 2 x 2 and 2 x 3"):
        overlay(image.resize((2, 2)), MAP, RGB)


def test_shares():
    np.testing.assert_allclose(shares(MAP, 4), [2 / 6, 2 / 6, 1 / 6, 0])  # 255 is no class
    assert shares(MAP.astype(np.int32), 256).sum() == pytest.approx(1)


def test_the_legend_shows_what_is_there_the_largest_first():
    image = PIL.Image.new("RGB", (40, 200))
    part = np.array([0.25, 0.75, 0.0])
    picture = with_legend(image, part, RGB, ["cat", "a name " * 30, "dog"])
    assert picture.height == 200
    assert picture.crop((0, 0, 40, 200)).tobytes() == image.tobytes()
    legend = np.asarray(picture)[:, 40:].reshape(-1, 3).tolist()
    assert 0 < legend.index([0, 255, 0]) < legend.index([255, 0, 0])
    assert [0, 0, 255] not in legend
    assert picture.width < 700  # a long name is shortened


def test_the_legend_of_many_classes_has_columns():
    picture = with_legend(
        PIL.Image.new("RGB", (64, 64)), np.full(150, 1 / 150), load_palette("ade20k").colours, ade20k()
    )
    colours = {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in load_palette("ade20k").colours.tolist()} <= colours
    assert picture.height < 400
