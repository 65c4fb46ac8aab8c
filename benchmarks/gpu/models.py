"""NAT-Tiny and DiNAT-Tiny end to end at 224 px: inference and a training step (AdamW), computed in bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.timing import fresh_key, peak_bytes, seconds, side_by_side
from benchmarks.harness import Report

BATCH, SIDE = 128, 224

Prepared = tuple[jax.stages.Compiled, Callable[[], jax.Array]]  # a program, and a run of it


def measure(report: Report, rehearse: bool, threads: int) -> None:
    """Adds a row per model, direction and implementation."""
    key, seed = fresh_key()
    batch, side = (1, 32) if rehearse else (BATCH, SIDE)
    report.note(seed=seed, batch=batch, side=side, parameters="float32; bfloat16 in inference")
    changes = {"depths": (1, 1), "num_heads": (1, 2), "embed_dim": 16, "kernel_size": 3} if rehearse else {}
    ours = [("nat_tiny", "triton"), ("dinat_tiny", "triton")]
    theirs = [("nat_tiny", "xla")]
    # Training steps take minutes to compile on few cores: what is sooner ready is measured before.
    groups = [(infer, ours), (train, ours), (infer, theirs), (train, theirs)]
    for prepare, runs in groups[2:] if rehearse else groups:
        if report.time_is_up():
            return
        compiled = side_by_side(
            {run: functools.partial(prepare, *run, key, batch, side, changes) for run in runs}, threads
        )
        what = "inference" if prepare is infer else "training step"
        for (name, implementation), prepared in compiled.items():
            labels = {"model": name, "what": what, "implementation": implementation}
            report.measure(lambda p=prepared: row(*p(), batch), **labels)


def infer(name: str, implementation: str, key: jax.Array, batch: int, side: int, changes: dict) -> Prepared:
    """Compiles the logits of a batch."""
    from flax import nnx

    model = _model(name, implementation, "bfloat16", changes)
    model.eval()
    graph, state = nnx.split(model)
    images = jax.random.normal(key, (batch, side, side, 3), "bfloat16")
    program = jax.jit(lambda state, images: nnx.merge(graph, state)(images).logits).lower(state, images).compile()
    return program, lambda: program(state, images)


def train(name: str, implementation: str, key: jax.Array, batch: int, side: int, changes: dict) -> Prepared:
    """Compiles a step of training, its state donated as a training loop does."""
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

    return program, run


def _model(name: str, implementation: str, param_dtype: str, changes: dict):
    import natjax

    return natjax.create_model(
        name, dtype="bfloat16", param_dtype=param_dtype, implementation=implementation, drop_path_rate=0.0, **changes
    )


def row(program: jax.stages.Compiled, run: Callable[[], jax.Array], batch: int) -> dict[str, Any]:
    """Times runs of a program, and sees that what comes out are numbers."""
    middle, spread = seconds(run, (), samples=10, limit=2.0)
    if not jnp.isfinite(run()).all():
        raise FloatingPointError("the logits or the loss are not finite")
    return {
        "milliseconds": round(middle * 1e3, 3),
        "spread_milliseconds": round(spread * 1e3, 3),
        "images_per_second": round(batch / middle, 1),
        "peak_bytes": peak_bytes(program),
    }
