"""Reads images: the one place where natjax decodes files, with every failure as an `ImageError` that names the image.

Pixels come out with 8 bits. Deeper ones are scaled where their range is known, and refused where it is not.
"""

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
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from natjax.errors import ImageError, MaskError

if TYPE_CHECKING:
    from jaxtyping import UInt8

    Encoded = str | os.PathLike | bytes | bytearray | memoryview | IO[bytes] | PIL.Image.Image

# What Pillow registers but natjax does not read: formats that need a program or handler of their own, and drawings.
_LEFT_OUT = ("EPS", "WMF", "PDF", "HDF5", "GRIB", "BUFR", "MPEG")
# How files begin that are often taken for images, and what to do about them.
_BEGINNINGS = {
    b"version https://git-lfs": "it is a pointer of Git LFS: run git lfs pull",
    b"%PDF": "it is a PDF document",
    b"<": "it is a drawing (SVG) or a web page",
    b"\xff\x0a": "it is JPEG XL: convert it to PNG or JPEG",
    b"\0\0\0\x0cJXL ": "it is JPEG XL: convert it to PNG or JPEG",
    b"II*\0": "it is TIFF, damaged or with pixels that Pillow does not know, such as colours of 32 bits",
    b"MM\0*": "it is TIFF, damaged or with pixels that Pillow does not know, such as colours of 32 bits",
    b"\x89PNG": "it is damaged PNG",
    b"\xff\xd8\xff": "it is damaged JPEG",
}
HEIC_READER, AVIF_READER = "pip install pillow-heif", "a newer Pillow"  # what a Pillow needs for these formats
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_EXIF_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)  # a tag, and its values of images that lie on their side
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_MAX, _TIFF_PLANES, _TIFF_FORMAT = 258, 262, 281, 284, 339  # tags


def readable_formats() -> list[str]:
    """Returns Pillow's names of the formats that are read: all that open pixels, and HEIF where pillow_heif is installed."""
    _register_formats()
    return [name for name in PIL.Image.ID if name not in _LEFT_OUT]


@functools.cache
def _register_formats() -> None:
    PIL.Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def load_image(source: Encoded, mode: str = "RGB") -> PIL.Image.Image:
    """Reads one image as Hugging Face's `load_image` does: turned upright by its EXIF orientation, then converted.

    Args:
        source: path of an image file, its bytes, the file opened for reading bytes, or a Pillow image.
        mode: Pillow mode of the result; Hugging Face knows "RGB" only, grey models take "L".

    Raises:
        natjax.ImageError: the file is missing, empty, damaged, too large or not an image, or has deep pixels of unknown range;
            the message names it.
    """
    return decode_image(source, mode)


@contextlib.contextmanager
def pixel_limit(most: int | None) -> Generator[None]:
    """Takes images of so many pixels, whatever Pillow's own limit is; of as many as that for None."""
    before = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = before if most is None else most
    try:
        yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = before


def is_image_source(source: Any) -> bool:
    """Returns whether something is an image for `decode_image`: a path, bytes, an open file or a Pillow image."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview | PIL.Image.Image) or hasattr(
        source, "read"
    )


def decode_image(source: Encoded, mode: str = "RGB", *, upright: bool = True) -> PIL.Image.Image:
    """Decodes one image. Any thread may call it.

    Grey pixels of 9 to 16 bits are scaled by the range of their bits, as Pillow scales colours. 32-bit and floating point pixels
    are taken as 0..255 if that is what they are, and refused otherwise.

    Args:
        source: see `load_image`.
        mode: Pillow mode of the result.
        upright: whether to turn it by its EXIF orientation.

    Raises:
        natjax.ImageError: see `load_image`. Too large is a file of more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if not is_image_source(source) or isinstance(source, io.TextIOBase):
        raise ImageError(
            "An image is a path, the bytes of a file, a file opened with mode 'rb' or a Pillow image; "
            f"got {type(source).__name__}. Arrays go to natjax.NatImageProcessor or a pipeline as they are."
        )
    name = image_name(source)
    with _explained(source):
        if isinstance(source, PIL.Image.Image):
            image = PIL.ImageOps.exif_transpose(source) if upright else source
            image = _eight_bits(image, source, name).convert(mode)
        else:
            with _opened(source) as file:
                file.load()
                if upright:
                    PIL.ImageOps.exif_transpose(file, in_place=True)
                image = _eight_bits(file, file, name).convert(mode)
    if 0 in image.size:
        raise ImageError(f"{name}: has no pixels.")
    return image


def upright_size(source: Encoded) -> tuple[int, int]:
    """Returns height and width of an image file, turned upright, from its header alone.

    Raises:
        natjax.ImageError: see `load_image`.
    """
    with _explained(source), _opened(source) as file:
        width, height = file.size
        return (width, height) if file.getexif().get(_EXIF_ORIENTATION, 1) in _LYING else (height, width)


def stored_size(source: Encoded) -> tuple[int, int]:
    """Returns height and width of an image file before it is turned upright, from its header alone.

    Raises:
        natjax.ImageError: see `load_image`.
    """
    with _explained(source), _opened(source) as file:
        return file.height, file.width


def decode_mask(source: Encoded) -> UInt8[np.ndarray, "H W"]:
    """Decodes a mask: the numbers of an image file's pixels, which are indices of a palette or values of grey.

    Raises:
        natjax.errors.MaskError: it has colours, or numbers beyond 255.
        natjax.ImageError: it cannot be read, see `load_image`.
    """
    name = image_name(source)
    with _explained(source), _opened(source) as file:
        if file.mode not in ("P", "L", "1", "I") and not file.mode.startswith("I;16"):
            raise MaskError(
                f"{name}: is an image of mode {file.mode}, and a mask has one number per pixel, the class: a PNG with a "
                "palette or in grey. Where colours stand for classes, write their numbers instead."
            )
        pixels = np.asarray(file)
        if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
            raise MaskError(
                f"{name}: has numbers from {pixels.min()} to {pixels.max()}; classes of masks are 0 to 255."
            )
    if not pixels.size:
        raise ImageError(f"{name}: has no pixels.")
    return pixels.astype(np.uint8)


@contextlib.contextmanager
def _opened(source: Any) -> Generator[PIL.Image.Image]:
    """Opens an image file, whose pixels are not read yet."""
    data: Any = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    with PIL.Image.open(data, formats=readable_formats()) as file:
        if math.prod(file.size) > (PIL.Image.MAX_IMAGE_PIXELS or math.inf):
            raise PIL.Image.DecompressionBombError  # Pillow itself takes twice as many
        yield file


@contextlib.contextmanager
def _explained(source: Any) -> Generator[None]:
    """Turns whatever Pillow raises into an `ImageError` that names the image."""
    name = image_name(source)
    try:
        with _quiet_pillow():
            yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        address = " natjax downloads no images: fetch it, and give the file or its bytes." if "://" in name else ""
        raise ImageError(f"{name}: there is no such file.{address}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a directory, not an image.") from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: too large to decode safely: more than {PIL.Image.MAX_IMAGE_PIXELS} pixels may be a decompression bomb. "
            "For an image that you trust, set --max-pixels, or in Python PIL.Image.MAX_IMAGE_PIXELS, higher."
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_what_it_is(_beginning(source))}.") from error
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
        raise ImageError(f"{name}: cannot be read: {reason}.") from error


def _eight_bits(image: PIL.Image.Image, origin: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Returns an image with its pixels in 8 bits.

    Args:
        image: of any mode.
        origin: the image as it was opened, whose format tells the range of its pixels.
        name: of the image in messages.
    """
    tags = getattr(origin, "tag_v2", {})
    if tags.get(_TIFF_PLANES) == 2 and max(tags.get(_TIFF_BITS, (8,))) > 8 and len(image.getbands()) > 1:
        raise ImageError(f"{name}: colours of 16 bits in planes of their own, which Pillow misreads. Save it as PNG.")
    if 2 in tags.get(_TIFF_FORMAT, ()) and max(tags.get(_TIFF_BITS, (8,))) == 8:
        raise ImageError(f"{name}: signed pixels of 8 bits, which Pillow misreads. Save them as 0..255.")
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    sixteen = image.mode.startswith("I;16") and origin.format != "FITS"  # whose integers have a sign
    if sixteen or (image.mode == "I" and origin.format in ("PNG", "PPM")):
        bits = min(16, *tags.get(_TIFF_BITS, (16,)))
        if most := max(tags.get(_TIFF_MAX, (0,))):  # 12 bits in words of 16, say
            bits = max(8, min(bits, int(most).bit_length()))
        if tags.get(_TIFF_PHOTOMETRIC) == 0:  # white is zero, which Pillow minds in 8 bits only
            pixels = 2**bits - 1 - pixels
        return PIL.Image.fromarray((pixels >> (bits - 8)).clip(0, 255).astype(np.uint8))
    low, high = pixels.min(), pixels.max()
    if (low == high == 0) or (low >= 0 and 1 < high <= 255):  # not so for NaN
        return image
    kind = "floating point" if image.mode == "F" else "integer"
    raise ImageError(
        f"{name}: {kind} pixels, {low:.6g}..{high:.6g} in this image, do not say which value is white. "
        "Scale them to 0..255 and save them with 8 bits."
    )


def _beginning(source: Any) -> bytes:
    with contextlib.suppress(Exception):
        if isinstance(source, bytes | bytearray | memoryview):
            return bytes(source[:64])
        if hasattr(source, "read"):
            source.seek(0)
            return source.read(64)
        with open(source, "rb") as file:
            return file.read(64)
    return b"?"


def _what_it_is(beginning: bytes) -> str:
    if not beginning:
        return "the file is empty"
    reason = next((text for start, text in _BEGINNINGS.items() if beginning.lstrip().startswith(start)), "")
    if beginning[4:8] == b"ftyp":
        brand = beginning[8:12]
        reason = f"it is HEIC, which {HEIC_READER} reads" if brand in _HEIF_BRANDS else "it is a video"
        reason = f"it is AVIF, which {AVIF_READER} reads" if brand.startswith(b"avi") else reason
    return "not an image that Pillow can read" + (f": {reason}" if reason else "")


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
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "name", None)
    if not isinstance(path, str | os.PathLike):
        return "The image"
    name = os.fspath(path)
    return name if len(name) <= 300 else f"{name[:300]}..."
