"""Semantic segmentation: from logits to class maps of any size, palettes, and pictures of class maps.

    import natjax.segmentation

    segmenter = jax.jit(lambda x: model.decode(x)[0])
    class_maps = natjax.segmentation.segment(segmenter, pixel_values, (height, width))  # [B, height, width]
    palette = natjax.segmentation.palette_for(model.config.num_labels)  # uint8 [L, 3]
    natjax.segmentation.coloured(class_maps[0], palette).save("map.png")  # its pixels are class indices

A class map is an array [H, W] of class indices, uint8; 255 in a mask means that a pixel is ignored.
"""

from natjax.segmentation.inference import segment
from natjax.segmentation.palettes import Palette, generated, load_palette, palette_for, read_palette
from natjax.segmentation.pictures import coloured, overlay, shares, with_legend

__all__ = [
    "Palette",
    "coloured",
    "generated",
    "load_palette",
    "overlay",
    "palette_for",
    "read_palette",
    "segment",
    "shares",
    "with_legend",
]
