"""The size of the images that a model is used with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natjax.image_processing import NatImageProcessor

_IMAGENET_SIDE = 224  # of images whose size nothing says


def input_size(config: Any, processor: NatImageProcessor | None) -> tuple[int, int]:
    """Returns height and width in pixels of the images that a model is used with: as its image processor makes them.

    Args:
        config: the model's.
        processor: the one beside the model; the default one where there is none.
    """
    from natjax.processors import default_processor  # NumPy and Pillow are not for --help

    processor = processor or default_processor(config)
    if processor is None or not (processor.do_resize or processor.do_center_crop):
        return _IMAGENET_SIDE, _IMAGENET_SIDE
    size = processor.crop_size if processor.do_center_crop else processor.size
    edge = size.get("shortest_edge")
    return size.get("height", edge), size.get("width", size.get("longest_edge", edge))
