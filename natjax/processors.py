"""Which image processor a model has: the one beside its checkpoint, or else that of the ImageNet evaluation of NAT."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from natjax.configuration import PROCESSOR_NAME, MaskRcnnConfig, UperNetConfig, VitRpbConfig
from natjax.errors import CheckpointError
from natjax.image_processing import NatImageProcessor
from natjax.presets import preset_of
from natjax.text import counted

if TYPE_CHECKING:
    from natjax.configuration import NatConfig
    from natjax_convert import Checkpoint


def default_processor(config: NatConfig) -> NatImageProcessor | None:
    """Returns the image processor of a model of which nothing says it; None where it takes neither 1 nor 3 channels.

    That of a UPerNet is mmsegmentation's, see `NatImageProcessor.semantic_segmentation`; that of a Mask R-CNN, or a cascade,
    mmdetection's, see `NatImageProcessor.object_detection`. For others it is that of ImageNet: side
    and crop are those of the preset of the same architecture, or else 224 pixels and 0.875; a ViT-rpb says its side.
    """
    if config.num_channels not in (1, 3):
        return None
    if isinstance(config, UperNetConfig):
        return NatImageProcessor.semantic_segmentation(num_channels=config.num_channels)
    if isinstance(config, MaskRcnnConfig):
        return NatImageProcessor.object_detection(num_channels=config.num_channels)
    preset = preset_of(config)
    side, crop_pct = (preset.image_size, preset.crop_pct) if preset else (224, 0.875)
    if isinstance(config, VitRpbConfig):
        side = config.image_size
    return NatImageProcessor.imagenet(side, crop_pct, config.num_channels)


def describe_default(config: NatConfig) -> str:
    """Returns in words what the default processor of a model does."""
    processor = default_processor(config)
    if processor is None:
        return f"images have 1 or 3 channels, and the model takes {config.num_channels}"
    if isinstance(config, UperNetConfig | MaskRcnnConfig):
        size, whose = processor.size, "mmsegmentation" if isinstance(config, UperNetConfig) else "mmdetection"
        return f"as {whose} does (the ratio kept within {size['longest_edge']} x {size['shortest_edge']} pixels)"
    edge, side = (processor.to_dict()[name] for name in ("size", "crop_size"))
    return f"as for ImageNet (resized to {edge['shortest_edge']} pixels, cropped to {side['height']})"


def own_processor(checkpoint: Checkpoint) -> NatImageProcessor | None:
    """Returns the image processor beside a checkpoint, or None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    text = checkpoint.processor_json()
    try:
        return None if text is None else NatImageProcessor.from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:  # also JSON's
        raise CheckpointError(f"{checkpoint.path}: its {PROCESSOR_NAME} cannot be used: {error}") from error


def load_processor(checkpoint: Checkpoint, report: Callable[[str], None]) -> NatImageProcessor:
    """Returns the image processor beside a checkpoint, or the default one where there is none, which is reported.

    Raises:
        CheckpointError: it cannot be read or makes another number of channels than the model takes, or there is no default.
    """
    processor = own_processor(checkpoint)
    if processor is not None:
        check_channels(processor, checkpoint.config, f"the {PROCESSOR_NAME} of {checkpoint.path}")
        return processor
    missing, default = f"{checkpoint.path} comes without a {PROCESSOR_NAME}", default_processor(checkpoint.config)
    if default is None:
        raise CheckpointError(f"{missing}, and there is no default: {describe_default(checkpoint.config)}.")
    report(f"{missing}: preparing images {describe_default(checkpoint.config)}")
    return default


def check_channels(processor: NatImageProcessor, config: NatConfig, name: str = "the image processor") -> None:
    """Checks that an image processor makes as many channels as a model takes.

    Raises:
        CheckpointError: it does not; the message speaks of it by `name`.
    """
    if processor.num_channels != config.num_channels:
        raise CheckpointError(
            f"the model takes {counted(config.num_channels, 'channel')}, {name} makes {processor.num_channels}; its image_mean "
            "and image_std decide that, with one entry per channel."
        )
