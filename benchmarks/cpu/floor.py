"""What this machine can do at best: float32 matrix products and convolutions at NAT-Tiny's own shapes, and bytes copied.

Each is run by XLA and by PyTorch, in turn. FLOP here are two per multiply-accumulate; the papers' (and natjax.model_info's) are
one. Letters: B batch, H W height and width, C channels, M K N sides of a product.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cpu.timing import interleaved, spread
from benchmarks.harness import Report
from natjax.model_info import count_parts
from natjax.nn.xla import compiler_options
from natjax.presets import get_config

MODEL, SIDE, BATCH = "nat_tiny", 224, 8
# Attention's own, over tiles and heads: (queries x channels)(channels x keys), then (queries x keys)(keys x channels).
SMALL = [(49, 32, 100), (49, 100, 32), (49, 32, 169), (49, 169, 32), (64, 32, 196), (64, 196, 32)]
TILES = 1024  # as level 1 has at batch 8: 64 tiles of 7 x 7, 2 heads


def measure(report: Report, quick: bool) -> None:
    """Adds a row per shape, and FLOPs per level."""
    seconds = 0.15 if quick else 0.6
    rng = np.random.default_rng(0)
    for label, (m, k, n) in products(BATCH).items():
        report.measure(functools.partial(product, rng, (m, k), (k, n), seconds), kind="product", name=label)
    for m, k, n in SMALL:
        label = f"[{TILES}] x ({m}x{k})({k}x{n})"
        report.measure(functools.partial(product, rng, (TILES, m, k), (TILES, k, n), seconds), kind="small", name=label)
    for label, (side, inputs, outputs) in convolutions().items():
        report.measure(
            functools.partial(convolution, rng, side, inputs, outputs, seconds), kind="convolution", name=label
        )
    report.measure(functools.partial(copy, seconds), kind="copy", name="read and write 128 MB in place")
    report.note(
        flops={part.name: 2 * part.flops for part in count_parts(get_config(MODEL), (SIDE, SIDE))},
        flops_are="two per multiply-accumulate, of one image",
    )


def products(batch: int) -> dict[str, tuple[int, int, int]]:
    """Returns M, K, N of the linear layers, by level and layer."""
    found = {}
    config = get_config(MODEL)
    for level, part in enumerate(count_parts(config, (SIDE, SIDE))[1:-1], 1):
        height, width, dim = part.shape
        tokens, hidden = batch * height * width, int(config.mlp_ratio * dim)
        shapes = {"qkv": (dim, 3 * dim), "proj": (dim, dim), "fc1": (dim, hidden), "fc2": (hidden, dim)}
        found |= {f"level {level} {layer}": (tokens, *shape) for layer, shape in shapes.items()}
    return found


def convolutions() -> dict[str, tuple[int, int, int]]:
    """Returns side of the map, channels in and out of the convolutions, all 3 x 3 of stride 2."""
    config = get_config(MODEL)
    half = config.embed_dim // 2
    found = {"stem 1": (SIDE, config.num_channels, half), "stem 2": (SIDE // 2, half, config.embed_dim)}
    for level, dim in enumerate(config.level_dims[:-1], 1):
        found[f"downsample {level}"] = (SIDE >> (level + 1), dim, 2 * dim)
    return found


def product(rng: np.random.Generator, left: tuple[int, ...], right: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Times a product, batched where the shapes are."""
    a, b = (rng.standard_normal(shape, np.float32) for shape in (left, right))
    flops = 2 * a.size * right[-1]
    return rates({"xla": xla(jnp.matmul, a, b), "torch": torch_call(lambda torch: torch.matmul, a, b)}, flops, seconds)


def convolution(rng: np.random.Generator, side: int, inputs: int, outputs: int, seconds: float) -> dict[str, Any]:
    """Times a 3 x 3 convolution of stride 2, channels last on both sides."""
    x = rng.standard_normal((BATCH, side, side, inputs), np.float32)
    w = rng.standard_normal((3, 3, inputs, outputs), np.float32)

    def ours(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def theirs(torch):
        return functools.partial(torch.nn.functional.conv2d, stride=2, padding=1)

    runs = {"xla": xla(ours, x, w), "torch": torch_call(theirs, x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1))}
    return rates(runs, 2 * 9 * BATCH * (side // 2) ** 2 * inputs * outputs, seconds)


def copy(seconds: float) -> dict[str, Any]:
    """Times adding 1 in place, so that no fresh memory is touched, in GB/s read and written."""
    array = jnp.zeros(32 << 20, jnp.float32)
    nbytes = 2 * array.nbytes
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(array).compile()

    def run() -> None:
        nonlocal array
        array = jax.block_until_ready(program(array))

    runs: dict[str, Callable | None] = {"xla": run, "torch": None}
    if importlib.util.find_spec("torch"):
        import torch

        tensor = torch.zeros(32 << 20)
        runs["torch"] = lambda: tensor.add_(1)
    times = interleaved({name: run for name, run in runs.items() if run}, seconds=seconds)
    return {
        name: spread(found) | {"gigabytes_per_second": round(nbytes / np.median(found) / 1e9, 1)}
        for name, found in times.items()
    }


def xla(function: Callable, *arrays: Any) -> Callable[[], Any]:
    """Returns a call of the compiled function that waits for its result."""
    placed = jax.tree.map(jnp.asarray, arrays)
    program = jax.jit(function, compiler_options=compiler_options()).lower(*placed).compile()
    return lambda: jax.block_until_ready(program(*placed))


def torch_call(make: Callable, *arrays: np.ndarray) -> Callable[[], Any] | None:
    """Returns a call of the function that `make` gets out of the module torch, or None where there is none."""
    if not importlib.util.find_spec("torch"):
        return None
    import torch

    function, tensors = make(torch), [torch.from_numpy(array) for array in arrays]

    def run():
        with torch.inference_mode():
            return function(*tensors)

    return run


def rates(runs: dict[str, Callable | None], flops: int, seconds: float) -> dict[str, Any]:
    """Returns times and GFLOP/s of calls that do the same."""
    times = interleaved({name: run for name, run in runs.items() if run}, seconds=seconds)
    return {
        name: spread(found) | {"gflops_per_second": round(flops / np.median(found) / 1e9, 1)}
        for name, found in times.items()
    }
