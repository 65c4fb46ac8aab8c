"""NAT in plain PyTorch, as somebody would write it today: masked scaled_dot_product_attention, one call per layer.

Small maps attend densely, under a mask of bias and minus infinity. Larger ones are cut into tiles of 7 x 7 queries, each with the
13 x 13 keys that any of them sees, so that work grows with the map and not with its square. In evaluation the mask is made once.
Parameters are natjax's by order and shape, weights of linear layers and convolutions in PyTorch's layout.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn
from torch.nn import functional

TILE, DENSE = 7, 16  # side of a tile, and of the largest map that attends densely


class Attention(nn.Module):
    """Neighborhood attention with relative positional bias of [B, H, W, C]."""

    def __init__(self, dim: int, heads: int, kernel_size: int, side: int):
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rpb = nn.Parameter(0.02 * torch.randn(heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.tile = side if side <= DENSE else TILE
        keys, bias = tiles(side, kernel_size, self.tile)
        self.register_buffer("keys", torch.from_numpy(keys), persistent=False)  # [tiles, S]
        self.register_buffer("bias", torch.from_numpy(bias), persistent=False)  # [tiles, T, S], -1 where masked
        self.mask: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, side, _, channels = x.shape
        per_axis = side // self.tile
        query, key, value = self.qkv(x).view(batch, side, side, 3, self.heads, -1).unbind(3)
        query = query.view(batch, per_axis, self.tile, per_axis, self.tile, self.heads, -1)
        query = query.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)  # [B * tiles, N, T, D]
        key, value = (y.flatten(1, 2)[:, self.keys].transpose(2, 3).flatten(0, 1) for y in (key, value))  # [.., S, D]
        mask = self.make_mask() if self.training or self.mask is None else self.mask
        if not self.training:
            self.mask = mask
        if per_axis > 1:
            mask = mask.expand(batch, *mask.shape).flatten(0, 1)
        out = functional.scaled_dot_product_attention(query, key, value, mask)
        out = out.view(batch, per_axis, per_axis, self.heads, self.tile, self.tile, -1)
        return self.output(out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, side, side, channels))

    def make_mask(self) -> torch.Tensor:
        """Returns bias or minus infinity, [tiles, N, T, S]."""
        bias = self.rpb.flatten(1)[:, self.bias.clamp(min=0)]
        return bias.masked_fill(self.bias < 0, float("-inf")).transpose(0, 1)


@functools.cache
def tiles(side: int, kernel_size: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions of keys [tiles, S], and for every query and key the place in the bias table or -1, [tiles, T, S]."""
    origins, halo = np.arange(0, side, tile), min(side, tile + kernel_size - 1)
    query = origins[:, None] + np.arange(tile)  # [tiles, T] of an axis
    key = np.clip(origins - kernel_size // 2, 0, side - halo)[:, None] + np.arange(halo)  # [tiles, S] of an axis
    window = np.clip(query - kernel_size // 2, 0, side - kernel_size)[:, :, None]
    seen = (key[:, None] >= window) & (key[:, None] < window + kernel_size)
    place = np.where(seen, key[:, None] - query[:, :, None] + kernel_size - 1, -1)  # [tiles, T, S] of an axis
    rows, columns = place[:, None, :, None, :, None], place[None, :, None, :, None, :]
    both = np.where((rows >= 0) & (columns >= 0), rows * (2 * kernel_size - 1) + columns, -1)
    keys = key[:, None, :, None] * side + key[None, :, None, :]
    count = len(origins) ** 2
    return keys.reshape(count, halo**2), both.reshape(count, tile**2, halo**2)


class Layer(nn.Module):
    """Pre-norm attention and MLP, each with layer scale where the configuration has it."""

    def __init__(self, dim: int, heads: int, kernel_size: int, side: int, hidden: int, scale: float):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, kernel_size, side)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.scale = nn.Parameter(torch.full((2, dim), scale)) if scale > 0 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (1.0, 1.0) if self.scale is None else self.scale
        x = x + first * self.attention(self.norm1(x))
        return x + second * self.mlp(self.norm2(x))


class MaskedNat(nn.Module):
    """The classifier of a natjax.NatConfig for square images of one size whose maps are multiples of 7."""

    def __init__(self, config, image_size: int):
        super().__init__()
        half, side = config.embed_dim // 2, image_size // 4
        self.stem = nn.ModuleList([halving(config.num_channels, half, True), halving(half, config.embed_dim, True)])
        self.stem_norm = nn.LayerNorm(config.embed_dim)
        self.levels, self.downsample = nn.ModuleList(), nn.ModuleList()
        for level, (depth, dim) in enumerate(zip(config.depths, config.level_dims, strict=True)):
            arguments = (dim, config.num_heads[level], config.kernel_size, side >> level, int(config.mlp_ratio * dim))
            layers = [Layer(*arguments, config.layer_scale_init_value) for _ in range(depth)]
            self.levels.append(nn.Sequential(*layers))
            if level + 1 < config.num_levels:
                self.downsample.append(nn.ModuleList([halving(dim, 2 * dim, False), nn.LayerNorm(2 * dim)]))
        self.norm, self.head = nn.LayerNorm(config.hidden_size), nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits of [B, C, H, W]."""
        return self.head(self.norm(self.features(x)[-1]).mean((1, 2)))

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns every level's map before downsampling, [B, h, w, C]."""
        x, maps = self.stem_norm(self.stem[1](self.stem[0](x)).permute(0, 2, 3, 1)), []
        for level, layers in enumerate(self.levels):
            x = layers(x)
            maps.append(x)
            if level < len(self.downsample):
                convolution, norm = self.downsample[level]
                x = norm(convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return maps


class MaskedUperNet(nn.Module):
    """The segmenter of a natjax.UperNetConfig: MaskedNat's levels under the heads of transformers' UPerNet."""

    def __init__(self, config, image_size: int):
        from transformers import UperNetConfig
        from transformers.models.upernet import modeling_upernet as upernet

        super().__init__()
        backbone = config.backbone_config
        names = ("hidden_size", "auxiliary_channels", "auxiliary_loss_weight", "num_labels")
        fields = {name: getattr(config, name) for name in names}
        heads = UperNetConfig(
            **fields, pool_scales=list(config.pool_scales), auxiliary_in_channels=backbone.level_dims[2]
        )
        self.backbone = MaskedNat(backbone.replace(num_labels=1), image_size)
        self.norms = nn.ModuleList(map(nn.LayerNorm, backbone.level_dims))
        self.decode_head = upernet.UperNetHead(heads, list(backbone.level_dims))
        self.auxiliary_head = upernet.UperNetFCNHead(heads)
        del self.backbone.norm, self.backbone.head

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Returns logits of [B, C, H, W] at its size; in training both heads'."""
        maps = [norm(y).permute(0, 3, 1, 2) for norm, y in zip(self.norms, self.backbone.features(x), strict=True)]
        resize = functools.partial(functional.interpolate, size=x.shape[2:], mode="bilinear", align_corners=False)
        logits = resize(self.decode_head(maps))
        return (logits, resize(self.auxiliary_head(maps))) if self.training else logits


def halving(inputs: int, outputs: int, bias: bool) -> nn.Conv2d:
    """Returns a 3 x 3 convolution of stride 2, in PyTorch's channels-last memory."""
    return nn.Conv2d(inputs, outputs, 3, 2, 1, bias=bias).to(memory_format=torch.channels_last)
