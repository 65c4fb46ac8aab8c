"""What one would take instead of NAT, in PyTorch on any device: Swin and ConvNeXt, both Tiny, as transformers has them."""

from __future__ import annotations

from typing import Any


def build(name: str, small: bool = False) -> Any:
    """Returns "swin_tiny" or "convnext_tiny" of random weights, or a few layers of it where `small`: for rehearsals."""
    import transformers

    # The defaults of their configurations are the tiny models.
    if name == "swin_tiny":
        sizes = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 64}
        config = transformers.SwinConfig(num_labels=1000, drop_path_rate=0.0, **(sizes if small else {}))
        return transformers.SwinForImageClassification(config)
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    config = transformers.ConvNextConfig(num_labels=1000, **(sizes if small else {}))
    return transformers.ConvNextForImageClassification(config)
