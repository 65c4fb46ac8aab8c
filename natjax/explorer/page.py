"""The explorer's page: an image, the windows and the quantised weights of all layers, in one HTML file."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import zlib
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from natjax.explorer.layers import LayerAttention, layers_of
from natjax.image_arrays import one_image

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8

    from natjax.image_processing import NatImageProcessor
    from natjax.models import NatModel

LEVELS = 255  # of quantised weights: the largest of a token and head
_MOST_WEIGHTS = 2**27  # in a page; browsers hold each as a byte


def make_page(
    model: NatModel, processor: NatImageProcessor, image: Any, *, name: str | None = None, model_name: str = "NAT"
) -> str:
    """Returns the page of an image, HTML that asks no server for anything.

    Args:
        model: the bare model, as the pipeline "image-feature-extraction" has it.
        processor: what prepares images for it. The page shows the image as it comes out of this: resized and cropped.
        image: one image, as the processor takes it.
        name: what the page calls the image; by default its file's name.
        model_name: what the page calls the model.

    Raises:
        ImageError: the image cannot be read, or there are several.
        ValueError: the image is so large that its weights are too many for a page.
    """
    pixel_values = one_image(processor(image))
    _check_size(model, pixel_values.shape[1:3])
    if name is None:
        name = os.path.basename(image) if isinstance(image, str | os.PathLike) else "image"
    shown = _picture(pixel_values[0], processor)
    document = {
        "image": _data_url(shown),
        "width": shown.width,
        "height": shown.height,
        "patch": model.config.patch_size,
        "layers": [_packed(layer) for layer in layers_of(model, pixel_values)],
    }
    values = {
        "TITLE": html.escape(name),
        "MODEL": html.escape(model_name),
        "STYLE": _asset("explorer.css"),
        "DATA": json.dumps(document, separators=(",", ":")),  # numbers and base64: nothing in it can end its element
        "SCRIPT": _asset("explorer.js"),
    }
    head, *parts = _asset("explorer.html").split("{{")
    return head + "".join(values[part.split("}}", 1)[0]] + part.split("}}", 1)[1] for part in parts)


def quantised(
    weights: Float[np.ndarray, "N H W K"],
) -> tuple[UInt8[np.ndarray, "N H W K"], Float32[np.ndarray, "N H W"]]:
    """Returns weights in units of 1/255 of their token's and head's largest one, and these largest ones.

    They come back as `bytes / 255 * largest`, within 1/510 of the largest.
    """
    largest = weights.max(-1)
    return np.rint(weights * (LEVELS / largest[..., None])).astype(np.uint8), largest.astype(np.float32)


def _packed(layer: LayerAttention) -> dict[str, Any]:
    """Returns a layer as explorer.js reads it."""
    rows, columns = layer.windows()
    weights, largest = quantised(layer.weights)
    return {
        "level": layer.level,
        "layer": layer.layer,
        "size": layer.size,
        "map": weights.shape[1:3],
        "heads": len(weights),
        "kernel": layer.kernel_size,
        "dilation": layer.dilation,
        "rows": rows.tolist(),
        "columns": columns.tolist(),
        "weights": _base64(zlib.compress(weights.tobytes(), 9)),
        "largest": _base64(zlib.compress(largest.astype("<f4").tobytes(), 9)),
    }


def _check_size(model: NatModel, size: tuple[int, int]) -> None:
    """Checks how many weights an image has, before they are computed.

    Raises:
        ValueError: they are too many.
    """
    config, count = model.config, 0
    for i, level in enumerate(model.encoder.levels):
        tokens = np.prod([-(-side // (config.patch_size * 2**i)) for side in size])
        count += sum(int(tokens) * config.num_heads[i] * int(np.prod(x.attention.kernel_size)) for x in level.layers)
    if count > _MOST_WEIGHTS:
        raise ValueError(
            f"an image of {size[0]} x {size[1]} pixels has {count:,} attention weights in this model, too many for a page: at "
            f"most {_MOST_WEIGHTS:,}. Give a smaller image, or leave --full-size out."
        )


def _picture(pixels: Float[np.ndarray, "H W C"], processor: NatImageProcessor) -> PIL.Image.Image:
    """Returns the image that the model sees: normalisation and rescaling undone."""
    values = np.asarray(pixels, np.float64)
    if processor.do_normalize:
        values = values * processor.image_std + processor.image_mean
    if processor.do_rescale:
        values = values / processor.rescale_factor
    values = np.rint(values).clip(0, 255).astype(np.uint8)
    return PIL.Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def _data_url(picture: PIL.Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{_base64(file.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _asset(name: str) -> str:
    return resources.files("natjax.explorer").joinpath(name).read_text(encoding="utf-8")
