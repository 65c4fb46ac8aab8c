"""Reads images: the one place where natjax decodes files, with every failure as an `ImageError` that names the image."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import os
import threading
import warnings
from collections.abc import Generator
from typing import Any

import PIL.Image
import PIL.ImageOps

from natjax.errors import ImageError

# What Pillow registers but natjax does not read: formats that need a program or handler of their own, and drawings.
_LEFT_OUT = ("EPS", "WMF", "PDF", "HDF5", "GRIB", "BUFR", "MPEG")


def readable_formats() -> list[str]:
    """Returns Pillow's names of the formats that are read: all that open pixels, and HEIF where pillow_heif is installed."""
    _register_formats()
    return [name for name in PIL.Image.ID if name not in _LEFT_OUT]


@functools.cache
def _register_formats() -> None:
    PIL.Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def load_image(source: str | os.PathLike | PIL.Image.Image, mode: str = "RGB") -> PIL.Image.Image:
    """Reads one image as Hugging Face's `load_image` does: turned upright by its EXIF orientation, then converted.

    Args:
        source: path of an image file, or a Pillow image.
        mode: Pillow mode of the result; Hugging Face knows "RGB" only, grey models take "L".

    Raises:
        natjax.ImageError: the file is missing, empty, damaged, too large or not an image; the message names it.
    """
    if not isinstance(source, str | os.PathLike | PIL.Image.Image):
        raise ImageError(f"An image is a path or a Pillow image; got {type(source).__name__}.")
    return decode_image(source, mode)


def decode_image(
    source: bytes | str | os.PathLike | PIL.Image.Image,
    mode: str = "RGB",
    *,
    upright: bool = True,
    strict: bool = False,
) -> PIL.Image.Image:
    """Decodes one image. Any thread may call it.

    Args:
        source: bytes of an image file, its path, or a Pillow image.
        mode: Pillow mode of the result.
        upright: whether to turn it by its EXIF orientation.
        strict: whether to refuse more pixels than Pillow takes for harmless, and not only twice as many.

    Raises:
        natjax.ImageError: it is missing, empty, damaged, too large or no image; the message names it.
    """
    name = image_name(source)
    try:
        with _quiet_pillow():
            if isinstance(source, PIL.Image.Image):
                image = (PIL.ImageOps.exif_transpose(source) if upright else source).convert(mode)
            else:
                file = io.BytesIO(source) if isinstance(source, bytes) else source
                with PIL.Image.open(file, formats=readable_formats()) as file:
                    most = PIL.Image.MAX_IMAGE_PIXELS
                    if strict and most and math.prod(file.size) > most:
                        raise PIL.Image.DecompressionBombError(
                            f"{file.width} x {file.height} pixels may be a decompression bomb"
                        )
                    file.load()
                    if upright:
                        PIL.ImageOps.exif_transpose(file, in_place=True)
                    image = file.convert(mode)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such file.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a directory, not an image.") from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too large to decode safely: {error}") from error
    except PIL.UnidentifiedImageError as error:
        size = os.path.getsize(source) if isinstance(source, str | os.PathLike) and os.path.exists(source) else None
        empty = size == 0 or source == b""
        raise ImageError(f"{name}: {'the file is empty' if empty else 'not an image that Pillow can read'}.") from error
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
        raise ImageError(f"{name}: cannot be read: {reason}.") from error
    if 0 in image.size:
        raise ImageError(f"{name}: has no pixels.")
    return image


@contextlib.contextmanager
def _quiet_pillow() -> Generator[None]:
    """Silences Pillow's warnings of large images, odd palettes and broken metadata: pixels come out, or an error does.

    In the main thread alone: warning filters are the whole process's, and two threads that swap them would mix them up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def image_name(image: Any) -> str:
    """Returns what messages call an image: its path where it has one."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else "The image"
