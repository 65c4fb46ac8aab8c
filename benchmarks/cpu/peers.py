"""What a user could take instead on a CPU, in PyTorch: models of random weights, and a run of each as inference or training step.

"hf natten" is transformers' Nat over NATTEN, the only way left to the published weights in PyTorch; requirements-peers.txt says
how to build it. "sdpa" is masked.py, "torchvision" its Mask R-CNN over that. Swin and ConvNeXt, both Tiny, are what one would
take instead of NAT. "compiled" is by torch.compile.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from natjax import UperNetConfig, get_config

GFLOPS = {"swin": 4.5, "convnext": 4.5}  # multiply-accumulates at 224 px, as their papers have them


def missing(entrant: str) -> str | None:
    """Returns what an entrant lacks here, or None."""
    kind = entrant.split()[0]
    needed = {
        "natjax": [],
        "sdpa": ["torch"],
        "hf": ["torch", "transformers", "natten"],
        "torchvision": ["torch", "torchvision"],
    }
    lacking = [name for name in needed.get(kind, ["torch", "transformers"]) if not importlib.util.find_spec(name)]
    return f"{', '.join(lacking)} cannot be imported; see benchmarks/requirements-peers.txt" if lacking else None


def prepare(entrant: str, preset: str, batch: int, side: int, train: bool) -> tuple[Callable[[], Any], float]:
    """Returns a run of an entrant, and the seconds of its first one, in which torch.compile compiles."""
    import torch

    torch.manual_seed(0)
    kind, _, how = entrant.partition(" ")
    model = make(kind, preset, side).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    if kind in ("sdpa", "torchvision") and not train:
        with torch.inference_mode():
            model.eval()(images[:1])  # makes the masks, which is nothing to compile
            if kind == "torchvision":
                model.find_as_trained(images[0])
    run = run_of(model, images, train, compiled=how == "compiled")
    started = time.perf_counter()
    run()
    return run, time.perf_counter() - started


def run_of(model: Any, images: Any, train: bool, compiled: bool) -> Callable[[], Any]:
    """Returns inference or a step of AdamW, which on a GPU computes in bfloat16."""
    import torch
    from torch.nn.functional import cross_entropy

    model.train(train)
    forward = torch.compile(model, dynamic=False) if compiled else model
    labels = torch.zeros((), dtype=torch.long, device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=images.is_cuda)

    def logits() -> torch.Tensor:
        out = forward(images)
        return getattr(out, "logits", out)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            out = logits()
        heads = out if isinstance(out, tuple) else (out,)
        if isinstance(out, dict):  # a detector's own
            losses, weights = list(out.values()), (1,) * len(out)
        else:
            losses = [cross_entropy(head.float(), labels.new_zeros(len(images), *head.shape[2:])) for head in heads]
            weights = (1, 0.4)
        sum(weight * loss for weight, loss in zip(weights, losses, strict=False)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step if train else torch.inference_mode()(logits)


def make(kind: str, preset: str, side: int) -> Any:
    """Returns a model in PyTorch."""
    config = get_config(preset)
    if kind == "sdpa":
        from benchmarks.cpu import masked

        return (masked.MaskedUperNet if isinstance(config, UperNetConfig) else masked.MaskedNat)(config, side)
    if kind == "torchvision":
        from benchmarks.cpu.torch_detector import MaskedMaskRcnn

        return MaskedMaskRcnn(config, side)
    if kind == "hf":
        import_natten()
        import transformers

        fields = {name: getattr(config, name) for name in ("embed_dim", "mlp_ratio", "layer_scale_init_value")}
        fields |= {"depths": list(config.depths), "num_heads": list(config.num_heads), "drop_path_rate": 0.0}
        return transformers.NatForImageClassification(transformers.NatConfig(**fields, num_labels=config.num_labels))
    return other(kind)


def other(name: str, small: bool = False) -> Any:
    """Returns transformers' Swin-Tiny or ConvNeXt-Tiny ("swin", "convnext"), or a few layers of it: for rehearsals."""
    import transformers

    # The defaults of their configurations are the tiny models.
    if name == "swin":
        sizes = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 64}
        config = transformers.SwinConfig(num_labels=1000, drop_path_rate=0.0, **(sizes if small else {}))
        return transformers.SwinForImageClassification(config)
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    config = transformers.ConvNextConfig(num_labels=1000, **(sizes if small else {}))
    return transformers.ConvNextForImageClassification(config)


def import_natten() -> None:
    """Imports NATTEN 0.17.5 with what it misses in PyTorch 2.13, and transformers 4.40.2 in NATTEN 0.17.5."""
    import torch

    torch.cuda._device_t = Any  # only annotations use it
    # It asks for the capability where Triton is, without a GPU too.
    with mock.patch.object(torch.cuda, "get_device_capability", return_value=(0, 0)):
        from natten import functional

    def natten2dqkrpb(query, key, rpb, kernel_size, dilation):
        return functional.na2d_qk(query, key, kernel_size, dilation, rpb=rpb)

    functional.natten2dqkrpb, functional.natten2dav = natten2dqkrpb, functional.na2d_av
