"""The one rule for what is an image: suffixes, hidden files and leftovers, links, and what is said of the rest."""

import os
import sys
import types

import PIL.Image
import pytest

from natjax import images
from natjax.errors import ImageError
from natjax.image_files import describe, find_images, image_suffixes, is_hidden

pytestmark = pytest.mark.once
links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")


def files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder, **options):
    return [os.path.relpath(path, folder).replace(os.sep, "/") for path in find_images(folder, **options).paths]


def test_suffixes_are_those_that_pillow_opens():
    suffixes = image_suffixes()
    assert suffixes >= {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".tif",
        ".bmp",
        ".ppm",
        ".jp2",
        ".mpo",
        ".gif",
    }
    assert not suffixes & {".eps", ".ps", ".pdf", ".wmf", ".emf", ".h5", ".hdf", ".grib", ".bufr", ".mpg", ".txt"}
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)


def test_what_is_no_image_is_counted_by_kind(tmp_path):
    files(
        tmp_path,
        "b.PNG",
        "a.jpg",
        "deep/er/c.Tiff",
        "notes.txt",
        "labels.txt",
        "IMG_1.HEIC",
        "README",
        "x.p_q",
        ".z.png",
    )
    files(
        tmp_path,
        "._a.jpg",
        "Thumbs.db",
        ".ipynb_checkpoints/a.png",
        "deep/.@__thumb/c.png",
        "__MACOSX/a.jpg",
        "@eaDir/a.jpg",
    )
    assert found(tmp_path) == ["a.jpg", "b.PNG", "deep/er/c.Tiff"]
    skipped = find_images(tmp_path).skipped
    assert skipped == {
        "hidden folder": 4,
        "hidden file": 3,
        ".txt file": 2,
        ".heic file": 1,
        "file without a suffix": 1,
        "file of an unknown suffix": 1,
    }
    assert describe(skipped) == (
        "4 hidden folders, 3 hidden files, 2 .txt files, 1 .heic file (pip install pillow-heif reads them), "
        "1 file without a suffix, 1 file of an unknown suffix"
    )
    assert describe({f".{i} file": 1 for i in range(9)}).endswith(", 3 of other kinds")
    assert describe({}) == ""
    assert is_hidden(".x") and is_hidden("__MACOSX") and not is_hidden("__MACOSX_2")  # noqa: PT018


def test_heif_is_read_where_its_plugin_is_installed(tmp_path, monkeypatch):
    files(tmp_path, "IMG_1.HEIC")
    monkeypatch.setattr(PIL.Image, "ID", list(PIL.Image.ID))
    monkeypatch.setattr(PIL.Image, "EXTENSION", dict(PIL.Image.EXTENSION))

    def register():
        PIL.Image.ID.append("HEIF")
        PIL.Image.EXTENSION[".heic"] = "HEIF"

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    images._register_formats.cache_clear()
    try:
        assert found(tmp_path) == ["IMG_1.HEIC"]
    finally:
        images._register_formats.cache_clear()


@links
def test_links_are_followed_once(tmp_path):
    root, elsewhere = tmp_path / "a" / "root", tmp_path / "elsewhere"
    files(root, "sub/1.png")
    files(elsewhere, "2.png", "also/3.png")
    (root / "here").symlink_to(elsewhere)
    (root / "twice").symlink_to(elsewhere / "also")
    (root / "sub" / "up").symlink_to(root)
    (root / "sub" / "far up").symlink_to(tmp_path)
    (elsewhere / "also" / "back").symlink_to(elsewhere)
    (root / "4.png").symlink_to(elsewhere / "2.png")
    (root / "gone.png").symlink_to(tmp_path / "nothing.png")
    (root / "self.png").symlink_to(root / "self.png")
    assert found(root) == ["4.png", "here/2.png", "here/also/3.png", "sub/1.png"]
    assert find_images(root).skipped == {"folder that links lead to again": 4, "broken link": 2}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes there")
def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert find_images(tmp_path).skipped == {"special file": 1}


def test_folders_that_cannot_be_read_are_errors(tmp_path, monkeypatch):
    files(tmp_path, "open/1.png", "closed/2.png")
    scan = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageError, match=r"closed: the folder cannot be read: Permission denied\.$"):
        find_images(tmp_path)
    with pytest.raises(ImageError, match=r"nothing: the folder cannot be read"):
        find_images(tmp_path / "nothing")


def test_folders_that_can_be_listed_and_not_entered_are_errors(tmp_path, monkeypatch):
    files(tmp_path, "listed/1.png")
    stat = os.stat

    def denied(path, **options):  # as for mode 0444, which root may enter
        if os.path.dirname(path).endswith("listed"):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(ImageError, match=r"listed: the folder cannot be read: Permission denied"):
        find_images(tmp_path)
