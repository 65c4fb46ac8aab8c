"""NATTEN's two 2-D functions in plain PyTorch, so that transformers 4.40.2's own NAT and DiNAT run where NATTEN does not.

NATTEN is needed by `transformers.models.nat` and `.dinat` and can hardly be built any more. What they call of it is attention
logits with bias and attention-weighted values, of NATTEN 0.17.5's semantics: windows shift inward at borders. Written apart
from `natjax_kernels`, whose oracle it is. Layout: query, key, value `[B, N, H, W, D]`, weights `[B, N, H, W, K*K]`.

    natten_oracle.install()
    from transformers import NatForImageClassification
"""

import functools
import importlib.machinery
import sys
import types

import torch


def natten2dqkrpb(query, key, rpb, kernel_size, dilation):
    """Returns the logits of every query (already scaled) with the keys of its window, [B, N, H, W, K*K]."""
    height, width = query.shape[2:4]
    keys, biases = _neighbours(height, width, kernel_size, dilation)
    near = key.flatten(2, 3)[:, :, keys]  # [B, N, H*W, K*K, D]
    logits = (near @ query.flatten(2, 3)[..., None]).squeeze(-1) + rpb.flatten(1)[:, biases]
    return logits.unflatten(2, (height, width))


def natten2dav(attn, value, kernel_size, dilation):
    """Returns the values of every query's window, weighted and summed, [B, N, H, W, D]."""
    height, width = value.shape[2:4]
    keys, _ = _neighbours(height, width, kernel_size, dilation)
    near = value.flatten(2, 3)[:, :, keys]
    out = (attn.flatten(2, 3)[..., None, :] @ near).squeeze(-2)
    return out.unflatten(2, (height, width))


def install():
    """Makes `import natten` find these functions and transformers believe that NATTEN is installed."""
    import transformers.utils.import_utils

    for name in ("nat", "dinat"):
        module = sys.modules.get(f"transformers.models.{name}.modeling_{name}")
        if module is not None and module.natten2dav is not natten2dav:
            raise RuntimeError(f"{module.__name__} was imported without NATTEN; call install() before.")
    functional = _module("natten.functional", natten2dqkrpb=natten2dqkrpb, natten2dav=natten2dav)
    sys.modules["natten"] = _module("natten", functional=functional)
    sys.modules["natten.functional"] = functional
    transformers.utils.import_utils._natten_available = True


@functools.cache
def _neighbours(height, width, kernel_size, dilation):
    """Returns the flat positions of every query's keys and of their biases in the table, both [H*W, K*K]."""
    rows, row_biases = _axis(height, kernel_size, dilation)
    columns, column_biases = _axis(width, kernel_size, dilation)

    def combine(first, second, size):
        return (first[:, None, :, None] * size + second[None, :, None, :]).reshape(height * width, kernel_size**2)

    return combine(rows, columns, width), combine(row_biases, column_biases, 2 * kernel_size - 1)


def _axis(length, kernel_size, dilation):
    """Returns the positions that every position of an axis attends to and their rows in the bias table, both [L, K]."""
    positions, biases = [], []
    for position in range(length):
        own, group = divmod(position, dilation)
        members = len(range(group, length, dilation))
        start = min(max(own - kernel_size // 2, 0), members - kernel_size)
        if start < 0:
            raise ValueError(f"An axis of {length} is too short for kernel size {kernel_size}, dilation {dilation}.")
        window = range(start, start + kernel_size)
        positions.append([member * dilation + group for member in window])
        biases.append([member - own + kernel_size - 1 for member in window])
    return torch.tensor(positions), torch.tensor(biases)


def _module(name, **attributes):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    vars(module).update(attributes)
    return module
