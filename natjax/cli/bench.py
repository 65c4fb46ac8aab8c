"""`natjax bench`: how fast a model is on this device: compile time, latency, images and FLOP per second, memory.

FLOP per second count two per multiply-accumulate, and a training step as three forward passes.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.cli._arguments import add_dtype_argument, image_side, positive_int, positive_seconds
from natjax.cli._config import read_config
from natjax.cli._memory import explain_out_of_memory
from natjax.cli._output import Progress, print_json, print_table, printable

if TYPE_CHECKING:
    from natjax.configuration import NatConfig

HELP = "measure how fast a model is on this device"
_LEAST, _MOST = 5, 1000  # runs that are timed


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        run: runs it on a batch and returns when that is done.
        compile_seconds: for tracing and compiling it.
        memory_bytes: of its arguments, results and temporaries, where the compiler says.
    """

    run: Callable[[], Any]
    compile_seconds: float
    memory_bytes: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("model", metavar="NAME|DIR", help="a name from `natjax list`, or a folder with a config.json")
    parser.add_argument(
        "--image-size", type=image_side, metavar="N", help="in pixels (default: that of the published model, or 224)"
    )
    parser.add_argument("--batch-size", type=positive_int, default=1, metavar="N", help="images per run (default: 1)")
    add_dtype_argument(parser)
    parser.add_argument("--train", action="store_true", help="measure a training step (AdamW), too")
    parser.add_argument(
        "--seconds",
        type=positive_seconds,
        default=10.0,
        metavar="S",
        help="of running, without compiling (default: 10)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    import jax

    from natjax.model_info import count_flops
    from natjax.presets import PRESETS

    config = read_config(args.model)
    if args.train and not config.num_labels:
        raise ValueError("The model has no classes to train on: its num_labels is 0; leave --train out.")
    preset = None if Path(args.model).exists() else PRESETS.get(args.model)
    side, batch = args.image_size or (preset.image_size if preset else 224), args.batch_size
    flops = 2 * batch * count_flops(config, (side, side))
    too_large = (
        f"{args.model} does not fit into this device's memory with {batch} image(s) of {side} x {side} pixels; "
        "give a smaller --batch-size or --image-size."
    )
    with explain_out_of_memory(too_large):
        measured = {"inference": _measure(inference(config, batch, side, args.dtype), args.seconds, batch, flops)}
        if args.train:
            program = training(config, batch, side, args.dtype)
            measured["training step"] = _measure(program, args.seconds, batch, 3 * flops)
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    facts = {"model": args.model, "image_size": side, "batch_size": batch, "dtype": args.dtype}
    if args.json:
        print_json({**facts, "device": device.device_kind, "peak_device_bytes": peak, "measured": measured})
        return 0
    shape = f"{batch} image(s) of {side} x {side} pixels"
    print(f"{printable(args.model)}, {shape}, {args.dtype}, on {device.device_kind} ({device.platform})\n")
    head = ("", "compile s", "p50 ms", "p95 ms", "images/s", "GFLOP/s", "memory MB")
    print_table(head, [(what, *map(_cell, row.values())) for what, row in measured.items()], indent="  ")
    if peak is not None:
        print(f"\n  peak of the device's memory: {peak / 1e6:,.0f} MB")
    return 0


def inference(config: NatConfig, batch: int, side: int, dtype: str = "float32") -> Program:
    """Compiles the logits of [batch, side, side, channels], with random weights of the same dtype."""
    import jax
    from flax import nnx

    from natjax.nn.xla import compiler_options

    graphdef, params = random_model(config, dtype, dtype)
    pixels = _pixels(config, batch, side, dtype)
    started = time.perf_counter()
    forward = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x).logits, compiler_options=compiler_options())
    program = forward.lower(params, pixels).compile()
    seconds = time.perf_counter() - started
    return Program(lambda: jax.block_until_ready(program(params, pixels)), seconds, _memory(program))


def training(config: NatConfig, batch: int, side: int, dtype: str = "float32") -> Program:
    """Compiles a step of AdamW on [batch, side, side, channels], whose state is donated; parameters are float32."""
    import jax
    import jax.numpy as jnp
    import optax  # flax requires it
    from flax import nnx

    from natjax.nn.xla import compiler_options

    graphdef, params = random_model(config, dtype, "float32", deterministic=False)
    optimizer = optax.adamw(1e-3)

    def step(params, moments, pixels, key):
        def loss(params):
            logits = nnx.merge(graphdef, params)(pixels, rngs=key).logits
            return -jnp.mean(jax.nn.log_softmax(logits.astype(jnp.float32))[:, 0])

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, value

    state = jax.tree.map(jnp.copy, (params, optimizer.init(params)))  # buffers that are shared cannot be donated twice
    others = (_pixels(config, batch, side, dtype), jax.random.key(1))
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1), compiler_options=compiler_options())
    program = compiled.lower(*state, *others).compile()
    seconds = time.perf_counter() - started

    def run() -> Any:
        nonlocal state
        *state, loss = program(*state, *others)
        return jax.block_until_ready(loss)

    return Program(run, seconds, _memory(program))


def random_model(config: NatConfig, dtype: str, param_dtype: str, **view: Any) -> tuple[Any, Any]:
    """Returns graphdef and random parameters; drawn by numpy, as initialisers compile a program per shape."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from natjax.models import NatForImageClassification

    model = nnx.eval_shape(
        lambda: NatForImageClassification(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    )
    graphdef, shapes = nnx.split(nnx.view(model, **view))
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32), x.dtype), shapes
    )


def _pixels(config: NatConfig, batch: int, side: int, dtype: str) -> Any:
    import jax

    return jax.random.normal(jax.random.key(0), (batch, side, side, config.num_channels), dtype)


def _memory(program: Any) -> int | None:
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return total - sizes.alias_size_in_bytes


def _measure(program: Program, seconds: float, batch: int, flops: int) -> dict[str, float | None]:
    """Times runs one by one, for so many seconds."""
    program.run()
    started = time.perf_counter()
    program.run()
    count = round(seconds / max(time.perf_counter() - started, 1e-9))
    count = max(_LEAST, min(_MOST, count))
    progress, times = Progress(count, "runs"), []
    try:
        for i in range(count):
            started = time.perf_counter()
            program.run()
            times.append(time.perf_counter() - started)
            progress.update(i + 1)
    finally:
        progress.clear()
    middle = statistics.median(times)
    return {
        "compile_seconds": round(program.compile_seconds, 2),
        "p50_milliseconds": round(middle * 1e3, 3),
        "p95_milliseconds": round(statistics.quantiles(times, n=20, method="inclusive")[-1] * 1e3, 3),
        "images_per_second": round(batch / middle, 2),
        "gflops_per_second": round(flops / middle / 1e9, 1),
        "memory_megabytes": None if program.memory_bytes is None else round(program.memory_bytes / 1e6, 1),
    }


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
