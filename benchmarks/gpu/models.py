"""NAT-Tiny and DiNAT-Tiny end to end at 224 px: inference and a training step (AdamW), computed in bfloat16."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.harness import Report
from benchmarks.gpu.timing import fresh_key, seconds

BATCH, SIDE = 128, 224


def measure(report: Report, rehearse: bool, **_: Any) -> None:
    """Adds a row per model, direction and implementation."""
    key, seed = fresh_key()
    batch, side = (1, 32) if rehearse else (BATCH, SIDE)
    report.note(seed=seed, batch=batch, side=side, parameters="float32; bfloat16 in inference")
    runs = (
        [("nat_tiny", "xla")] if rehearse else [("nat_tiny", "triton"), ("dinat_tiny", "triton"), ("nat_tiny", "xla")]
    )
    changes = {"depths": (1, 1), "num_heads": (1, 2), "embed_dim": 16, "kernel_size": 3} if rehearse else {}
    for name, implementation in runs:
        for what, run in (("inference", infer), ("training step", train)):
            report.measure(
                lambda r=run, n=name, i=implementation: r(n, i, key, batch, side, changes),
                model=name,
                what=what,
                implementation=implementation,
            )


def infer(name: str, implementation: str, key: jax.Array, batch: int, side: int, changes: dict) -> dict[str, Any]:
    """Times the logits of a batch."""
    from flax import nnx

    model = _model(name, implementation, "bfloat16", changes)
    model.eval()
    graph, state = nnx.split(model)
    images = jax.random.normal(key, (batch, side, side, 3), "bfloat16")
    program = jax.jit(lambda state, images: nnx.merge(graph, state)(images).logits).lower(state, images).compile()
    return _row(program, lambda: program(state, images), batch)


def train(name: str, implementation: str, key: jax.Array, batch: int, side: int, changes: dict) -> dict[str, Any]:
    """Times a step of training, its state donated as a training loop does."""
    import optax
    from flax import nnx

    model = _model(name, implementation, "float32", changes)
    model.train()
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    optimiser = optax.adamw(1e-3)
    images = jax.random.normal(key, (batch, side, side, 3), "bfloat16")
    labels = jnp.arange(batch) % 1000

    def step(parameters, moments, images, labels):
        def loss(parameters):
            return nnx.merge(graph, parameters, rest)(images, labels).loss

        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, moments = optimiser.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), moments, value

    # Copies, as buffers that a model shares cannot be donated twice.
    state = jax.tree.map(jnp.copy, (parameters, optimiser.init(parameters)))
    program = jax.jit(step, donate_argnums=(0, 1)).lower(*state, images, labels).compile()

    def run():
        nonlocal state
        *state, value = program(*state, images, labels)
        return value

    row = _row(program, run, batch)
    if not math.isfinite(float(run())):
        raise FloatingPointError("the loss is not finite")
    return row


def _model(name: str, implementation: str, param_dtype: str, changes: dict):
    import natjax

    return natjax.create_model(
        name, dtype="bfloat16", param_dtype=param_dtype, implementation=implementation, drop_path_rate=0.0, **changes
    )


def _row(program, run, batch: int) -> dict[str, Any]:
    middle, spread = seconds(run, (), samples=10, limit=2.0)
    memory = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {
        "milliseconds": round(middle * 1e3, 3),
        "spread_milliseconds": round(spread * 1e3, 3),
        "images_per_second": round(batch / middle, 1),
        "peak_bytes": peak - memory.alias_size_in_bytes,
    }
