"""Where NAT-Tiny's time goes, in two ways, float32; FLOP are two per multiply-accumulate.

`parts`: every kind of layer by itself, jitted from the model's own modules, beside the whole forward pass. Each linear layer's
bare matrix product is timed in turn with it: `of_floor` is the share of that rate which a part reaches; of what is no linear
layer, of the best rate at its level. `count` is how often the model has the part. What the parts take together and the model
does not is what fusion saves; the reverse is residuals, copies and caches.

`step`: training steps that lack a part, each in turn with the whole one. What a part takes is what its absence saves: XLA works
on several things at a time and fuses them, so that times of functions by themselves do not sum to the whole's. What stands in for
a part is as cheap as can be and depends on all that the part does, so that gradients still reach every parameter.
"""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.cpu.floor import BATCH, MODEL, SIDE, compiled, convolutions, normal, products
from benchmarks.harness import Options, Report, Worker
from benchmarks.timing import interleaved, spread
from natjax import benchmarking, get_config
from natjax.flops import count_flops
from natjax.nn.xla import gelu
from natjax_kernels import neighborhood_attention


class Part(NamedTuple):
    """A compiled part: what kind it is, of which level, how many of it there are, and FLOP of one."""

    kind: str
    level: int
    count: int
    run: Callable[[], Any]
    flops: int


def measure(report: Report, options: Options) -> None:
    """Adds a row per part, and sums, for batch 8 and batch 1."""
    for batch, seconds in ((BATCH, 8),) if options.small else ((BATCH, 40), (1, 15)):
        found: dict[str, Part] = {}
        report.measure(functools.partial(prepare, batch, found), kind="compile", batch=batch)
        if "whole model" in found:
            measure_batch(report, batch, found, seconds)


def measure_batch(report: Report, batch: int, parts: dict[str, Part], seconds: float) -> None:
    """Times the parts of a batch and the bare products in turn."""
    shapes = products(batch)
    bare = {f"floor {name}": compiled(jnp.matmul, normal(m, k), normal(k, n))[0] for name, (m, k, n) in shapes.items()}
    times = interleaved({name: part.run for name, part in parts.items()} | bare, seconds=seconds, most=25)
    middle = {name: statistics.median(found) for name, found in times.items()}
    rate = {name: 2 * math.prod(mkn) / middle[f"floor {name}"] for name, mkn in shapes.items()}
    totals: dict[str, float] = {}
    for name, part in parts.items():
        total = 1e3 * part.count * middle[name]
        totals[part.kind] = totals.get(part.kind, 0.0) + total
        row = {"count": part.count, **spread(times[name]), "total_milliseconds": round(total, 2)}
        if part.flops:
            level = [value for other, value in rate.items() if other.startswith(f"level {part.level} ")]
            floor, speed = rate.get(name) or max(level or rate.values()), part.flops / middle[name]
            row |= {"gflops_per_second": round(speed / 1e9, 1), "of_floor": round(speed / floor, 3)}
        report.add(kind=part.kind, name=name, batch=batch, **row)
    # "layers" are whole layers, without stem, downsamplers and head.
    whole, layers = totals.pop("whole"), totals.pop("layer")
    sums = {"whole": whole, "parts": sum(totals.values()), "layers": layers}
    shares = {kind: round(value / sums["parts"], 3) for kind, value in totals.items()}
    rows = {f"{name}_milliseconds": round(value, 2) for name, value in sums.items()}
    report.add(kind="sum", batch=batch, **rows, share_of_parts=shares)


def prepare(batch: int, parts: dict[str, Part]) -> dict[str, Any]:
    """Compiles all parts, the whole model last, and returns their number."""
    config = get_config(MODEL)
    model = nnx.merge(*benchmarking.random_model(config, "float32", "float32"))
    nat = model.nat

    def add(name: str, kind: str, level: int, count: int, module: Any, shape: tuple, flops: int = 0, call: Any = None):
        graph, params = nnx.split(module)
        call = call or (lambda module, x: module(x))
        run, _ = compiled(lambda params, x: call(nnx.merge(graph, params), x), params, normal(*shape))
        parts[name] = Part(kind, level, count, run, flops)

    convs = [*nat.embeddings.patch_embeddings.projection]
    convs += [level.downsample.reduction for level in nat.encoder.levels if level.downsample is not None]
    for (name, (side, inputs, _)), conv in zip(convolutions().items(), convs, strict=True):
        add(name, "convolution", 0, 1, conv, (batch, side, side, inputs))
    add("stem norm", "norm", 0, 1, nat.embeddings.norm, (batch, SIDE // 4, SIDE // 4, config.embed_dim))
    for number, level in enumerate(nat.encoder.levels, 1):
        side, dim, depth = SIDE >> (number + 1), config.level_dims[number - 1], config.depths[number - 1]
        layer, tokens, x = level.layers[0], batch * side**2, (batch, side, side, dim)
        linear, scores = 2 * tokens * dim * dim, 4 * tokens * config.kernel_size**2 * dim
        hidden = 4 * tokens * dim * int(config.mlp_ratio * dim)
        of = functools.partial(add, level=number, count=depth)
        attention, name = layer.attention, f"level {number}"
        add(f"{name} norm", "norm", number, 2 * depth, layer.layernorm_before, x)
        of(f"{name} qkv", "linear", module=attention.qkv, shape=x, flops=3 * linear)
        of(f"{name} attention", "attention", module=attention, shape=(*x[:3], 3 * dim), flops=scores, call=attend)
        of(f"{name} proj", "linear", module=attention.output, shape=x, flops=linear)
        of(f"{name} mlp", "mlp", module=layer, shape=x, flops=hidden, call=mlp)
        of(f"{name} layer", "layer", module=layer, shape=x, call=lambda layer, x: layer(x)[0])
        if level.downsample is not None:
            halved = (batch, side // 2, side // 2, 2 * dim)
            add(f"downsample {number} norm", "norm", number, 1, level.downsample.norm, halved)
    pixels, flops = (batch, SIDE, SIDE, config.num_channels), batch * count_flops(config, (SIDE, SIDE))
    add("whole model", "whole", 0, 1, model, pixels, flops, lambda model, x: model(x).logits)
    return {"parts": len(parts)}


def attend(attention: Any, qkv: jax.Array) -> jax.Array:
    """The op as the model calls it, on the output of its linear layer [B, H, W, 3 * C]."""
    heads = (*qkv.shape[:3], attention.num_heads, -1)
    query, key, value = (x.reshape(heads) for x in jax.lax.split(qkv, (qkv.shape[3] // 3,) * 3, axis=3))
    options = {"kernel_size": attention.kernel_size, "dilation": attention.dilation, "rpb": attention.rpb[...]}
    return neighborhood_attention(query, key, value, **options).reshape(*qkv.shape[:3], -1)


def mlp(layer: Any, x: jax.Array) -> jax.Array:
    """The two linear layers of a layer with GELU between them."""
    return layer.output(gelu(layer.intermediate(x)))


def no_attention(query, key, value, *, rpb, **_):
    return query + key * jnp.mean(rpb) + value


def no_norm(norm, x, **_):
    return x * norm.scale[...] + norm.bias[...]


def no_convolution(x, kernel, *_, **__):
    return x[:, ::2, ::2] @ jnp.mean(kernel, (0, 1))


WITHOUT: dict[str, Callable[[], Any]] = {
    "attention": lambda: mock.patch("natjax.nn.attention.neighborhood_attention", no_attention),
    "norms": lambda: mock.patch("natjax.nn.layers.LayerNorm.__call__", no_norm),
    "GELU": lambda: mock.patch.dict("natjax.nn.blocks._ACTIVATIONS", gelu=lambda x: x),
    "convolutions": lambda: mock.patch("natjax.nn.layers.conv3x3_s2", no_convolution),
    "AdamW": lambda: mock.patch("natjax_train.optim.make_optimizer", return_value=optax.identity()),  # leaves SGD
}


def measure_step(report: Report, options: Options) -> None:
    """Adds a row for the compilation of the whole step, and one per part that is left out; batch 8, AdamW."""
    with contextlib.ExitStack() as stack:
        steps: list[Worker] = []

        def whole() -> dict[str, Any]:
            steps.append(stack.enter_context(Worker(prepare_step, "whole")))
            return steps[0].row

        report.measure(whole, kind="compile", name="whole")
        for part in [*WITHOUT][: 1 if options.small else None] if steps else []:
            report.measure(functools.partial(compare, steps[0], part), kind="step", name=part)


def compare(whole: Worker, part: str) -> dict[str, Any]:
    """Times a step without a part in turn with the whole one."""
    with Worker(prepare_step, part) as lacking:
        times = interleaved({"whole": whole.run, "without": lacking.run}, seconds=50, most=5)
    share = 1 - statistics.median(times["without"]) / statistics.median(times["whole"])
    return {**lacking.row, "share": round(share, 3), **{name: spread(found) for name, found in times.items()}}


def prepare_step(lacks: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a run of a step, and what its compiler says of it."""
    with WITHOUT[lacks]() if lacks in WITHOUT else contextlib.nullcontext():
        program = benchmarking.training(get_config(MODEL, drop_path_rate=0.0), BATCH, SIDE)
    return program.run, {
        "compile_seconds": round(program.compile_seconds, 2),
        "memory_bytes": program.memory_bytes,
    }
