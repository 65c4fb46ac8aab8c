"""Checkpoints: what comes back, which are kept, and what becomes of damaged and unfinished ones."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import math
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from natjax.errors import CheckpointError
from natjax_train.checkpoint import Checkpoints
from natjax_train.checkpoint.checksums import digests
from natjax_train.mesh import make_mesh, state_shardings
from natjax_train.step import TrainState

# A read that fails ends Orbax's event loop while other reads of it are under way, and these complain to nobody.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Counter:
    def __init__(self, position=0):
        self.position = position

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def join_states(self, states):
        return {"position": sum(state["position"] for state in states)}


def make_state(step):
    params = {"levels": {0: jnp.arange(640.0).reshape(10, 64) + step, 1: jnp.ones(3)}, "scale": jnp.zeros(())}
    state = TrainState(jnp.int32(step), jnp.int32(0), params, (params, jnp.int32(step)), None)
    return jax.device_put(state, state_shardings(make_mesh("data=1"), state))


@pytest.fixture(autouse=True)
def _mesh():
    with jax.set_mesh(make_mesh("data=1")):
        yield
    gc.collect()  # so that they complain here and not during another test


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of five steps, of which two and the best are kept."""
    checkpoints = Checkpoints(tmp_path / "run", 2, print)
    for step, score in ((1, None), (2, 0.9), (3, 0.5), (4, None), (5, 0.1)):
        checkpoints.save(make_state(step), Counter(10 * step), '{"model": "nat_mini"}', score)
    checkpoints.close()
    return tmp_path / "run"


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def restore(directory):
    reports, counter = [], Counter()
    with Checkpoints(directory, 2, reports.append) as checkpoints:
        state = checkpoints.restore(abstract(make_state(0)), counter)
    return state, counter.position, reports


def restore_best(directory, newest=5):
    reports = []
    with Checkpoints(directory, 2, reports.append) as checkpoints:
        state = checkpoints.restore_best(make_state(newest))
    return int(state.step), reports


def test_round_trip(saved):
    state, position, reports = restore(saved)
    assert (int(state.step), position, reports) == (5, 50, [])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state, make_state(5)))
    assert json.loads((saved / "5" / "_CHECKPOINT_METADATA").read_text())["custom_metadata"] == {"model": "nat_mini"}


def test_positions_are_joined_also_of_as_many_processes(saved, monkeypatch):
    """Which images a process loads is not decided by their number alone."""
    monkeypatch.setattr(Counter, "join_states", lambda self, states: {"position": ["joined", *states]})
    assert restore(saved)[1] == ["joined", {"position": 50}]


def test_kept(saved):
    checkpoints = Checkpoints(saved, 2, print)
    assert (checkpoints.steps, checkpoints.best) == ([2, 4, 5], 2)
    checkpoints.close()
    assert restore_best(saved) == (2, [])
    assert restore_best(saved, newest=2) == (2, [])


def test_nothing_there(tmp_path):
    assert restore(tmp_path / "run") == (None, 0, [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("pattern", ["state/ocdbt.process_0/d/*", "data/process-0-of-1.json", "state/manifest.ocdbt"])
def test_damage(saved, damage, pattern):
    (path,) = (saved / "5").glob(pattern)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    state, position, reports = restore(saved)
    assert (int(state.step), position) == (4, 40)
    assert len(reports) == 1
    assert reports[0].startswith("The checkpoint of step 5 is damaged: ")
    assert (saved / "damaged-5").is_dir()


def test_another_number_of_processes(saved):
    position = saved / "5" / "data" / "process-0-of-1.json"
    for index in range(2):  # as if two had been at work
        position.with_name(f"process-{index}-of-2.json").write_text(position.read_text())
    position.unlink()
    assert restore(saved)[1:] == (100, [])
    (saved / "5" / "data" / "process-1-of-2.json").unlink()
    _, position, (report,) = restore(saved)
    assert position == 40
    assert report == (
        "The checkpoint of step 5 is damaged: its position in the data is missing (process-1-of-2.json). "
        "It is set aside as damaged-5."
    )


@pytest.mark.parametrize(
    "text", ['{"sco', "[]", '{"state": "0.2", "crc32": 1}', '{"state": "null", "crc32": 634125391}']
)
def test_damaged_score(saved, text):
    """The checkpoint is good, and can be evaluated again."""
    (saved / "5" / "data" / "score.json").write_text(text)
    state, _, reports = restore(saved)
    assert int(state.step) == 5
    assert reports == ["The score of step 5 is unreadable: it counts as not evaluated."]
    with Checkpoints(saved, 2, lambda message: None) as checkpoints:
        assert not checkpoints.has_score(5)
        checkpoints.save(make_state(5), Counter(50), "{}", 0.95)
        assert checkpoints.best == 5
    assert restore(saved)[2] == []


def test_damaged_best(saved):
    """The next best is used, at last the one that is at hand."""
    with Checkpoints(saved, 2, print) as checkpoints:
        checkpoints.save(make_state(4), Counter(40), "{}", 0.5)
    for step, next_best in ((2, 4), (4, 5)):
        (saved / str(step) / "state" / "manifest.ocdbt").unlink()
        best, (report,) = restore_best(saved)
        assert best == next_best
        assert report.startswith(f"The checkpoint of step {step} is damaged: ")
        assert (saved / f"damaged-{step}").is_dir()
    assert restore_best(saved) == (5, [])


def test_all_damaged(saved):
    for path in saved.glob("*/state/manifest.ocdbt"):
        path.unlink()
    with pytest.raises(
        CheckpointError, match=r"no good checkpoint: of step 5, .*; of step 4, .*; of step 2, .*Nothing was changed"
    ):
        restore(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["2", "4", "5"]


def test_only_damaged_ones_are_no_fresh_start(saved):
    for path in saved.iterdir():
        path.rename(saved / f"damaged-{path.name}")
    with pytest.raises(CheckpointError, match=r"only damaged checkpoints \(damaged-2, damaged-4, damaged-5\)"):
        restore(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: dataclasses.replace(state, ema=state.params), r"lacks ema\.levels\.0 \(3 arrays\)$"),
        (
            lambda state: dataclasses.replace(state, params={}),
            r"has params\.levels\.0 \(3 arrays\), which the recipe does",
        ),
        (
            lambda state: dataclasses.replace(state, params=state.params | {"scale": jnp.zeros(2)}),
            r"params\.scale is \[\] float32 in the checkpoint and \[2\] float32 here",
        ),
    ],
)
def test_of_another_recipe(saved, change, message):
    before = sorted(saved.iterdir())
    checkpoints = Checkpoints(saved, 2, print)
    with checkpoints, pytest.raises(ValueError, match=r"of another model or recipe: .*" + message.rstrip("$")):
        checkpoints.restore(abstract(change(make_state(0))), Counter())
    assert sorted(saved.iterdir()) == before


def test_other_data_touch_nothing(saved):
    """Not even what is damaged is set aside for a run that cannot go on."""

    class Other(Counter):
        def set_state(self, state):
            raise ValueError("other data")

    (saved / "5" / "state" / "manifest.ocdbt").unlink()
    with Checkpoints(saved, 2, print) as checkpoints, pytest.raises(ValueError, match="other data"):
        checkpoints.restore(abstract(make_state(0)), Other())
    assert sorted(path.name for path in saved.iterdir()) == ["2", "4", "5"]


def test_a_score_is_added(saved):
    with Checkpoints(saved, 2, print) as checkpoints:
        assert [checkpoints.has_score(step) for step in (2, 4, 5)] == [True, False, True]
        checkpoints.save(make_state(4), Counter(40), "{}", 0.95)
        checkpoints.save(make_state(5), Counter(50), "{}", 0.99)  # it has one
        assert (checkpoints.best, checkpoints.best_score) == (4, 0.95)
    assert restore_best(saved) == (4, [])


def test_a_kill_while_a_score_is_added(tmp_path):
    """What lies on the disk at every call that changes it, as a kill would leave it there, is the checkpoint with or without."""
    run, stages, watched = tmp_path / "run", [], False

    def look(event, arguments):
        nonlocal watched
        if watched and event in ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"):
            watched = False  # copying makes events, too
            stages.append(shutil.copytree(run, tmp_path / f"stage-{len(stages)}"))
            watched = True

    sys.addaudithook(look)
    with Checkpoints(run, 2, print) as checkpoints:
        checkpoints.save(make_state(1), Counter(10), "{}")
        checkpoints.wait()
        watched = True
        checkpoints.save(make_state(1), Counter(10), "{}", 0.5)
        checkpoints.wait()
        watched = False
    scores = []
    for stage in (*stages, run):
        state, position, reports = restore(stage)
        assert (int(state.step), position, reports) == (1, 10, [])
        with Checkpoints(stage, 2, print) as checkpoints:
            scores.append(checkpoints.best_score)
    assert len(scores) > 3
    assert scores == sorted(scores)  # minus infinity is none
    assert set(scores) == {-math.inf, 0.5}


def test_an_error_does_not_end_the_save_under_way(tmp_path):
    def fail():
        with Checkpoints(tmp_path / "run", 2, print) as checkpoints:
            checkpoints.save(make_state(1), Counter(10), "{}")
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fail()
    assert int(restore(tmp_path / "run")[0].step) == 1


def test_unfinished_ones_are_none(saved):
    (saved / "5").rename(saved / "5.orbax-checkpoint-tmp")  # as after a kill amid saving
    state, _, reports = restore(saved)
    assert (int(state.step), reports) == (4, [])
    checkpoints = Checkpoints(saved, 2, print)
    checkpoints.save(make_state(5), Counter(50), "{}")
    checkpoints.close()
    assert int(restore(saved)[0].step) == 5


def test_digests_see_every_element():
    state = make_state(1)
    before = digests(state)
    weights = state.params["levels"][0]
    swapped = weights.at[0, 0].set(weights[0, 1]).at[0, 1].set(weights[0, 0])
    state.params["levels"][0] = swapped
    assert int(jnp.sum(digests(state) != before)) == 1
    assert digests(jnp.arange(7, dtype=jnp.bfloat16)).dtype == jnp.uint32


@pytest.mark.parametrize("what", ["checkpoint", "score"])
def test_full_disk(tmp_path, what):
    """No file may grow any more during the second save."""
    command = [sys.executable, __file__, tmp_path / "run", what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if what == "checkpoint":
        assert "the checkpoint of step 2 could not be written" in done.stdout
        assert "The earlier ones are intact, the newest is of step 1" in done.stdout
    else:
        assert "cannot write: File too large. It was left as it was." in done.stdout
    assert "Traceback" not in done.stderr
    state, position, reports = restore(tmp_path / "run")
    assert (int(state.step), position, reports) == (1, 10, [])


def main() -> None:
    import resource

    checkpoints = Checkpoints(sys.argv[1], 2, print)
    state = make_state(1)
    with jax.set_mesh(make_mesh("data=1")):
        checkpoints.save(state, Counter(10), "{}")
        checkpoints.wait()
        limit, step, score = (1000, 2, None) if sys.argv[2] == "checkpoint" else (10, 1, 0.5)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            checkpoints.save(make_state(step), Counter(10 * step), "{}", score)
            checkpoints.wait()
        except CheckpointError as error:
            print(error)
        with contextlib.suppress(CheckpointError):
            checkpoints.close()
    if sys.argv[2] == "checkpoint":  # as a thread of the failed save would that ends only now
        log = logging.getLogger("absl")
        log.handle(log.makeRecord("absl", logging.ERROR, "orbax/thread.py", 1, "Traceback", (), None))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
