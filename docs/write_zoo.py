"""Writes docs/zoo.md, the page of the model zoo, from natjax's presets: `python docs/write_zoo.py`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from natjax.presets import DETECTION_PRESETS, PRESETS, SEGMENTATION_PRESETS
from natjax_convert import count_parameters
from natjax_convert.shapes import Kind

_INTRODUCTION = """# Model zoo

Every published variant by its name, with the figures of its authors ([NAT](https://arxiv.org/abs/2204.07143),
[DiNAT](https://arxiv.org/abs/2209.15001)); natjax has not measured them again. GMACs are multiply-accumulates of one image,
in units of 1e9. Where the weights are on the Hugging Face Hub, a name loads them from there; the others are files to download
and [convert](convert.md).
"""


def page() -> str:
    """Returns the page in Markdown."""
    return "\n".join(
        [
            _INTRODUCTION,
            "## Image classification\n\nTop-1 accuracy on ImageNet-1k's validation images.\n",
            *_table(PRESETS, "classifier", {"top1": "top-1 (%)"}),
            "\n## Semantic segmentation\n\nMean IoU on ADE20K's validation images, at one scale and at several.\n",
            *_table(
                SEGMENTATION_PRESETS, "segmentation", {"miou": "mIoU (%)", "miou_multi_scale": "several scales (%)"}
            ),
            "\n## Object detection\n\nAverage precision on COCO's validation images.\n",
            *_table(DETECTION_PRESETS, "detection", {"box_ap": "box AP (%)", "mask_ap": "mask AP (%)"}),
            "",
        ]
    )


def _table(presets: Mapping[str, Any], kind: Kind, figures: Mapping[str, str]) -> list[str]:
    titles = ("name", "pixels", "parameters (M)", "GMACs", *figures.values(), "weights", "licence")
    rows = [titles, ("---", "---", *["---:"] * (2 + len(figures)), "---", "---")]
    for name, preset in presets.items():
        size = preset.image_size
        where = (
            f"[{preset.hub_id}](https://huggingface.co/{preset.hub_id})"
            if preset.hub_id
            else f"[file]({preset.address})"
        )
        rows.append(
            (
                f"`{name}`",
                str(size) if isinstance(size, int) else " x ".join(map(str, size)),
                f"{count_parameters(preset.config, kind) / 1e6:.1f}",
                *(
                    "-" if value is None else str(value)
                    for value in (preset.gmacs, *(getattr(preset, f) for f in figures))
                ),
                where,
                preset.license,
            )
        )
    return [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    pathlib.Path(__file__).with_name("zoo.md").write_text(page(), encoding="utf-8")
