"""How XLA should compile these models: the one place that decides it by platform."""

from __future__ import annotations

import jax


def compiler_options() -> dict[str, str]:
    """Returns options for `jax.jit(..., compiler_options=...)` that suit these models on JAX's default backend.

    On a CPU: the order of work that needs the least memory. XLA's own choice there is the order in which most could go on at
    a time; of these models' work, which comes one after another, that only keeps 1.5 to 2.4 times the memory alive
    (docs/performance.md), and what is fresh memory has to be paged in. Nothing elsewhere.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
