"""Text in pictures, in any script: Pillow's own font, else a font of the system that has the characters, else escaped."""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from natjax.text import printable

Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont

_FOLDERS = {
    "win32": (
        os.path.join(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"),
        "~/AppData/Local/Microsoft/Windows/Fonts",
    ),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
}
_ELSEWHERE = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_PLAIN, _STYLED = ("sans", "unicode", "gothic", "hei"), ("bold", "italic", "oblique", "mono", "light", "thin", "black")
_MOST = 500  # fonts that are tried
_NO_CHARACTER = "\U0010fffe"  # for which every font draws what it has in place of missing ones


def fit(text: str, size: int) -> tuple[str, Font]:
    """Returns a text as it can be drawn, and the font to draw it with.

    Args:
        text: of any script. Characters that cannot be printed, or for which there is no font, come out as in `ascii(text)`.
        size: of the font in pixels.
    """
    text = printable(text)
    path = _font_with(frozenset(text))
    if path is None:
        text = "".join(c if _has(None, c) else ascii(c)[1:-1] for c in text)
    return text, _font(path, size)


@functools.cache
def _font_with(characters: frozenset[str]) -> str | None:
    """Returns the file of a font that has the characters; None for Pillow's own, also where no font has all of them."""
    missing = [c for c in sorted(characters) if not _has(None, c)]
    if not missing:
        return None
    return next((path for path in _fonts() if all(_has(path, c) for c in (*missing, *characters))), None)


@functools.cache
def _fonts() -> list[str]:
    """Returns the files of the system's fonts, plain sans-serif ones first."""

    def rank(path: str) -> tuple[bool, bool, str]:
        name = os.path.basename(path).lower()
        return any(word in name for word in _STYLED), not any(word in name for word in _PLAIN), path

    return sorted(itertools.islice(_font_files(), _MOST), key=rank)


def _font_files() -> Iterator[str]:
    for folder in _FOLDERS.get(sys.platform, _ELSEWHERE):
        for path in sorted(Path(folder).expanduser().rglob("*")):
            # macOS draws boxes with the names of blocks by the font LastResort.
            if path.suffix.lower() in (".ttf", ".otf", ".ttc") and not path.name.startswith("LastResort"):
                yield str(path)


@functools.cache
def _has(path: str | None, character: str) -> bool:
    """Returns whether a font has a character, and not only something to draw in its place."""
    if character.isspace():
        return True
    try:
        font = _font(path, 24)
        return _drawn(font, character) != _drawn(font, _NO_CHARACTER)
    except (OSError, UnicodeError):  # a font of another kind; Pillow's own without FreeType, which knows Latin-1 only
        return False


def _drawn(font: Font, character: str) -> bytes:
    image = PIL.Image.new("L", (48, 48))
    PIL.ImageDraw.Draw(image).text((8, 8), character, 255, font)
    return image.tobytes()


@functools.cache
def _font(path: str | None, size: int) -> Font:
    return PIL.ImageFont.load_default(size) if path is None else PIL.ImageFont.truetype(path, size)
