"""What tests of whole runs of dense tasks ask of a run's folder."""

import json
import os
import signal

import numpy as np
import pytest
from flax import nnx

from natjax_train.loop import PreemptedError, train


def metrics(out):
    """The lines of metrics.jsonl, without what was timed."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "data_wait")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def arrays(model_class, out):
    """All that the model of a run holds, batch statistics included."""
    return nnx.to_flat_state(nnx.split(model_class.from_pretrained(out))[1])


def assert_same_run(model_class, out, other):
    """Bit for bit."""
    assert metrics(out) == metrics(other)
    for (path, ours), (same, theirs) in zip(arrays(model_class, out), arrays(model_class, other), strict=True):
        assert path == same
        np.testing.assert_array_equal(ours[...], theirs[...], err_msg=str(path))


def train_interrupted(recipe, data, out):
    """Trains until SIGTERM, which comes before the first step, and then resumes."""

    def interrupt(recipe):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(PreemptedError):
        train(recipe, str(data), out, report=lambda message: None, started=interrupt)
    assert len(metrics(out)) == 1
    train(recipe, str(data), out, resume=True, report=lambda message: None)
