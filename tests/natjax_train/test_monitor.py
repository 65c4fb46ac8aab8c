"""Steps that are not finite: which are left out, and which end a run."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from natjax_train.monitor import NonFiniteError, StepMonitor
from natjax_train.recipe import Recipe


def monitor(messages, **changes):
    batches = types.SimpleNamespace(unreadable=())
    checkpoints = types.SimpleNamespace(wait=lambda: None, steps=[5])
    recipe, params = Recipe(model="custom", **changes), {"head": {"bias": 0, "kernel": 0}}
    return StepMonitor(recipe, params, batches, checkpoints, None, report=messages.append)


def found(loss=1.0, norms=(3.0, 4.0), finite=True):
    """What a step returns."""
    norms = np.array(norms, np.float32)
    numbers = {"loss": loss, "lr": 0.1, "grad_norm": np.sqrt(np.sum(norms * norms)), "grad_norms": norms}
    return {name: jnp.asarray(value) for name, value in {**numbers, "skipped": 0, "finite": finite}.items()}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (found(np.nan, (3.0, np.inf), False), "loss nan, norm of the gradients inf; 1 of 2 .*: head.kernel"),
        (found(np.inf, finite=False), "loss inf, norm of the gradients 5.0; no gradient"),
        (found(finite=False), "loss 1.0, norm of the gradients 5.0; statistics of batch normalisation are not"),
    ],
)
def test_what_is_not_finite_is_named(step, message):
    steps = monitor([])
    steps.add(6, found(), 0.0)
    steps.add(7, step, 0.0)
    with pytest.raises(NonFiniteError, match=rf"Step 7 is not finite: {message}\. The last good .* of step 5\."):
        steps.flush()


def test_a_hundred_in_a_row_are_too_many():
    messages = []
    steps = monitor(messages, skip_nonfinite=True)
    for step in range(99):
        steps.add(step, found(np.nan, finite=False), 0.0)
    steps.add(99, found(), 0.0)
    for step in range(100, 200):
        steps.add(step, found(np.nan, finite=False), 0.0)
    with pytest.raises(NonFiniteError, match="Step 199 is not finite"):
        steps.flush()
    assert len(messages) == 198
    assert messages[-1].startswith("Step 198 is not finite")
    assert messages[-1].endswith("It is left out.")
