"""Where NAT-Tiny's time goes: every kind of layer by itself, jitted from the model's own modules, beside the whole forward pass.

Each linear layer's bare matrix product is timed in turn with it: `of_floor` is the share of that rate which a part reaches; of
what is no linear layer, of the best rate at its level. `count` is how often the model has the part. What the parts take together
and the model does not is what fusion saves; the reverse is residuals, copies and caches. FLOP are two per multiply-accumulate.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.cpu.floor import BATCH, MODEL, SIDE, convolutions, products, xla
from benchmarks.cpu.timing import interleaved, record, spread
from benchmarks.harness import Report
from natjax.cli import bench
from natjax.model_info import count_flops
from natjax.nn.xla import gelu
from natjax.presets import get_config
from natjax_kernels import neighborhood_attention


class Part(NamedTuple):
    """A compiled part: what kind it is, of which level, how many of it there are, FLOP of one, and bytes read and written."""

    kind: str
    level: int
    count: int
    run: Callable[[], Any]
    flops: int
    nbytes: int


def measure(report: Report, quick: bool) -> None:
    """Adds a row per part, and sums, for batch 8 and batch 1."""
    for batch, seconds in ((BATCH, 8),) if quick else ((BATCH, 40), (1, 15)):
        found: dict[str, Part] = {}

        def compiled(found: dict[str, Part] = found, batch: int = batch) -> dict[str, Any]:
            found |= prepare(batch)
            return {"parts": len(found)}

        report.measure(compiled, kind="compile", batch=batch)
        if found:
            measure_batch(report, batch, found, seconds)


def measure_batch(report: Report, batch: int, parts: dict[str, Part], seconds: float) -> None:
    """Times the parts of a batch and the bare products in turn."""
    rng = np.random.default_rng(0)
    bare = {
        f"floor {name}": xla(
            jnp.matmul, rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        )
        for name, (m, k, n) in products(batch).items()
    }
    times = interleaved({name: part.run for name, part in parts.items()} | bare, seconds=seconds, most=25)
    rate = {
        name: 2 * m * k * n / statistics.median(times[f"floor {name}"]) for name, (m, k, n) in products(batch).items()
    }
    totals: dict[str, float] = {}
    for name, part in parts.items():
        middle = statistics.median(times[name])
        level = [value for other, value in rate.items() if other.startswith(f"level {part.level} ")] or [*rate.values()]
        floor = rate.get(name) or max(level)
        row = {"count": part.count, **spread(times[name]), "total_milliseconds": round(part.count * middle * 1e3, 2)}
        if part.flops:
            row |= {
                "gflops_per_second": round(part.flops / middle / 1e9, 1),
                "floor_gflops_per_second": round(floor / 1e9, 1),
                "of_floor": round(part.flops / middle / floor, 3),
            }
        if part.nbytes:
            row["gigabytes_per_second"] = round(part.nbytes / middle / 1e9, 1)
        record(report, kind=part.kind, name=name, batch=batch, **row)
        totals[part.kind] = totals.get(part.kind, 0.0) + part.count * middle
    whole, layers = totals.pop("whole"), totals.pop("layer", 0.0)
    alone = sum(totals.values())
    record(
        report,
        kind="sum",
        batch=batch,
        whole_milliseconds=round(whole * 1e3, 2),
        parts_milliseconds=round(alone * 1e3, 2),
        layers_milliseconds=round(layers * 1e3, 2),  # whole layers, without stem, downsamplers and head
        share_of_parts={kind: round(seconds / alone, 3) for kind, seconds in totals.items()},
    )


def prepare(batch: int) -> dict[str, Part]:
    """Compiles all parts."""
    config = get_config(MODEL)
    model = nnx.merge(*bench.random_model(config, "float32", "float32"))
    nat, parts = model.nat, {}
    rng = np.random.default_rng(0)

    def add(name: str, kind: str, level: int, count: int, module: Any, call: Callable, shape: tuple, flops: int, out=0):
        graph, params = nnx.split(module)
        run = xla(lambda params, x: call(nnx.merge(graph, params), x), params, rng.standard_normal(shape, np.float32))
        parts[name] = Part(kind, level, count, run, flops, out)

    def apply(module: Any, x: jax.Array) -> jax.Array:
        return module(x)

    convs = [*nat.embeddings.patch_embeddings.projection]
    convs += [level.downsample.reduction for level in nat.encoder.levels if level.downsample is not None]
    for (name, (side, inputs, outputs)), conv in zip(convolutions().items(), convs, strict=True):
        flops = 2 * 9 * batch * (side // 2) ** 2 * inputs * outputs
        add(name, "convolution", 0, 1, conv, apply, (batch, side, side, inputs), flops)
    stem = (batch, SIDE // 4, SIDE // 4, config.embed_dim)
    add("stem norm", "norm", 0, 1, nat.embeddings.norm, apply, stem, 0, 8 * int(np.prod(stem)))
    for i, level in enumerate(nat.encoder.levels):
        side, dim, depth = SIDE >> (i + 2), config.level_dims[i], config.depths[i]
        layer, tokens = level.layers[0], batch * side**2
        x, number = (batch, side, side, dim), i + 1
        linear = 2 * tokens * dim * dim
        hidden = int(config.mlp_ratio * dim)
        attention = 2 * tokens * config.kernel_size**2 * 2 * dim

        def of(name: str, number: int = number) -> str:
            return f"level {number} {name}"

        add(of("norm"), "norm", number, 2 * depth, layer.layernorm_before, apply, x, 0, 8 * tokens * dim)
        add(of("qkv"), "linear", number, depth, layer.attention.qkv, apply, x, 3 * linear)
        add(of("attention"), "attention", number, depth, layer.attention, attend, (*x[:3], 3 * dim), attention)
        add(of("proj"), "linear", number, depth, layer.attention.output, apply, x, linear)
        add(of("mlp"), "mlp", number, depth, layer, mlp, x, 4 * tokens * dim * hidden)
        total = 4 * linear + attention + 4 * tokens * dim * hidden
        add(of("layer"), "layer", number, depth, layer, lambda layer, x: layer(x)[0], x, total)
        if level.downsample is not None:
            halved = (batch, side // 2, side // 2, 2 * dim)
            add(
                f"downsample {number} norm",
                "norm",
                number,
                1,
                level.downsample.norm,
                apply,
                halved,
                0,
                8 * int(np.prod(halved)),
            )
    pixels = (batch, SIDE, SIDE, config.num_channels)
    flops = 2 * batch * count_flops(config, (SIDE, SIDE))
    add("whole model", "whole", 0, 1, model, lambda model, x: model(x).logits, pixels, flops)
    return parts


def attend(attention: Any, qkv: jax.Array) -> jax.Array:
    """The op as the model calls it, on the output of its linear layer [B, H, W, 3 * C]."""
    heads = (*qkv.shape[:3], attention.num_heads, -1)
    query, key, value = (x.reshape(heads) for x in jax.lax.split(qkv, (qkv.shape[3] // 3,) * 3, axis=3))
    options = {"kernel_size": attention.kernel_size, "dilation": attention.dilation, "rpb": attention.rpb[...]}
    return neighborhood_attention(query, key, value, **options).reshape(*qkv.shape[:3], -1)


def mlp(layer: Any, x: jax.Array) -> jax.Array:
    """The two linear layers of a layer with GELU between them."""
    return layer.output(gelu(layer.intermediate(x)))
