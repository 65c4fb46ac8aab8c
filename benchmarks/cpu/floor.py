"""What this machine can do at best: float32 matrix products and convolutions at NAT-Tiny's own shapes, and bytes copied.

Each is run by XLA and by PyTorch, in turn. FLOP here are two per multiply-accumulate; the papers' (natjax.flops's MACs) are
one. Letters: B batch, H W height and width, C channels, M K N sides of a product.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import natjax
from benchmarks.harness import Options, Report
from benchmarks.timing import interleaved, spread

MODEL, SIDE, BATCH = "nat_tiny", 224, 8
# Attention's own, over tiles and heads: (queries x channels)(channels x keys), then (queries x keys)(keys x channels).
SMALL = [(49, 32, 100), (49, 100, 32), (49, 32, 169), (49, 169, 32), (64, 32, 196), (64, 196, 32)]
TILES = 1024  # as level 1 has at batch 8: 64 tiles of 7 x 7, 2 heads


def measure(report: Report, options: Options) -> None:
    """Adds a row per shape, and the bandwidth of memory."""
    seconds = 0.15 if options.small else 0.6
    jobs = [("product", label, product, (m, k), (k, n)) for label, (m, k, n) in products(BATCH).items()]
    jobs += [("small", f"[{TILES}] x ({m}x{k})({k}x{n})", product, (TILES, m, k), (TILES, k, n)) for m, k, n in SMALL]
    jobs += [("convolution", label, convolution, *shape) for label, shape in convolutions().items()]
    jobs += [("copy", "read and write 128 MB in place", copy)]
    for kind, name, work, *shape in jobs:
        report.measure(functools.partial(work, *shape, seconds), kind=kind, name=name)


def products(batch: int) -> dict[str, tuple[int, int, int]]:
    """Returns M, K, N of the linear layers, by level and layer."""
    found, config = {}, natjax.get_config(MODEL)
    for level, dim in enumerate(config.level_dims, 1):
        tokens, hidden = batch * (SIDE >> (level + 1)) ** 2, int(config.mlp_ratio * dim)
        shapes = {"qkv": (dim, 3 * dim), "proj": (dim, dim), "fc1": (dim, hidden), "fc2": (hidden, dim)}
        found |= {f"level {level} {layer}": (tokens, *shape) for layer, shape in shapes.items()}
    return found


def convolutions() -> dict[str, tuple[int, int, int]]:
    """Returns side of the map, channels in and out of the convolutions, all 3 x 3 of stride 2."""
    config = natjax.get_config(MODEL)
    half = config.embed_dim // 2
    found = {"stem 1": (SIDE, config.num_channels, half), "stem 2": (SIDE // 2, half, config.embed_dim)}
    for level, dim in enumerate(config.level_dims[:-1], 1):
        found[f"downsample {level}"] = (SIDE >> (level + 1), dim, 2 * dim)
    return found


def normal(*shape: int) -> np.ndarray:
    """Returns normal numbers in float32."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def product(left: tuple[int, ...], right: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Times a product, batched where the shapes are."""
    a, b = normal(*left), normal(*right)
    runs = {"xla": compiled(jnp.matmul, a, b)[0], "torch": torch_call(lambda torch: torch.matmul, a, b)}
    return rates(runs, 2 * a.size * right[-1], seconds)


def convolution(side: int, inputs: int, outputs: int, seconds: float) -> dict[str, Any]:
    """Times a 3 x 3 convolution of stride 2, channels last on both sides."""
    x, w = normal(BATCH, side, side, inputs), normal(3, 3, inputs, outputs)

    def ours(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def theirs(torch):
        return functools.partial(torch.nn.functional.conv2d, stride=2, padding=1)

    tensors = x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)
    runs = {"xla": compiled(ours, x, w)[0], "torch": torch_call(theirs, *tensors)}
    return rates(runs, 2 * 9 * BATCH * (side // 2) ** 2 * inputs * outputs, seconds)


def copy(seconds: float) -> dict[str, Any]:
    """Times adding 1 in place, so that no fresh memory is touched, in GB/s read and written."""
    array = jnp.zeros(32 << 20, jnp.float32)
    nbytes = 2 * array.nbytes
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(array).compile()

    def run() -> None:
        nonlocal array
        array = jax.block_until_ready(program(array))

    theirs = torch_call(lambda torch: lambda x: x.add_(1), np.zeros(32 << 20, np.float32))
    return rates({"xla": run, "torch": theirs}, nbytes, seconds, "gigabytes_per_second")


def compiled(function: Callable, *inputs: Any) -> tuple[Callable[[], Any], jax.stages.Compiled]:
    """Returns a call of the compiled function that waits for its result, and the program."""
    placed = jax.tree.map(jnp.asarray, inputs)
    program = jax.jit(function, compiler_options=natjax.compiler_options()).lower(*placed).compile()
    return lambda: jax.block_until_ready(program(*placed)), program


def torch_call(make: Callable, *arrays: np.ndarray) -> Callable[[], Any] | None:
    """Returns a call of the function that `make` gets out of the module torch, or None where there is none."""
    if not importlib.util.find_spec("torch"):
        return None
    import torch

    function, tensors = make(torch), [torch.from_numpy(array) for array in arrays]
    return torch.inference_mode()(lambda: function(*tensors))


def rates(
    runs: dict[str, Callable | None], work: int, seconds: float, unit: str = "gflops_per_second"
) -> dict[str, Any]:
    """Returns times of calls that do the same, and their FLOP or bytes a second."""
    times = interleaved({name: run for name, run in runs.items() if run}, seconds=seconds)
    speed = {name: round(work / statistics.median(found) / 1e9, 1) for name, found in times.items()}
    return {name: spread(found) | {unit: speed[name]} for name, found in times.items()}
