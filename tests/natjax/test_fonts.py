"""Text in pictures: a font that has the characters, and what is drawn where there is none."""

import shutil

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from natjax import fonts

pytestmark = pytest.mark.once


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The only folder of fonts that the system has."""

    def clear():
        for function in (fonts._fonts, fonts._font_with, fonts._has):
            function.cache_clear()

    monkeypatch.setattr(fonts, "_FOLDERS", {})
    monkeypatch.setattr(fonts, "_ELSEWHERE", (str(tmp_path),))
    clear()
    yield tmp_path
    clear()


def test_where_there_is_no_font_characters_are_escaped(folder):
    (folder / "Broken.ttf").write_bytes(b"no font")
    for text, drawn in (
        ("tabby cat", "tabby cat"),
        ("\u732b cat", r"\u732b cat"),
        ("\u043a\u043e\u0442", r"\u043a\u043e\u0442"),
        ("two\nlines", r"two\nlines"),
        ("caf\udce9", r"caf\udce9"),
    ):
        actual, font = fonts.fit(text, 20)
        assert actual == drawn
        PIL.ImageDraw.Draw(PIL.Image.new("RGB", (200, 40))).text((0, 0), actual, (0, 0, 0), font)


def test_a_font_of_the_system_that_has_the_characters_is_taken():
    path = next((f for f in fonts._fonts() if fonts._has(f, "\u043a")), None)
    if path is None:
        pytest.skip("no font here has Cyrillic characters")
    text, font = fonts.fit("\u043a\u043e\u0442", 20)
    assert text == "\u043a\u043e\u0442"
    assert fonts._has(font.path, "\u043a")
    assert not fonts._has(None, "\u043a")


def test_macos_font_of_last_resort_is_none(folder):
    shutil.copy(__file__, folder / "LastResort.otf")
    assert fonts._fonts() == []


def test_pillow_without_freetype(folder, monkeypatch):
    monkeypatch.setattr(fonts, "_font", lambda path, size: PIL.ImageFont.load_default_imagefont())
    assert fonts.fit("cat \u732b", 20)[0] == r"cat \u732b"
