"""Times what is not the compiled step in a training run: prints shares, writes results/train_step_cpu.json; some 3 minutes.

The real loop trains NAT-Mini at 224 pixels on JPEG files (recipe nat_mini: RandAugment, mixup, cutmix, erasing), with its step
made to finish before it returns. So the time of the loop outside of the step is all of Python's: metrics, logging, putting
batches on the device. In a real run much of it passes while the devices work. Waiting for data is apart. Medians of one run.
"""

import argparse
import dataclasses
import pathlib
import statistics
import tempfile
import time
from unittest import mock

import jax
import numpy as np

from benchmarks.harness import RESULTS, write
from benchmarks.images import write_images
from benchmarks.provenance import provenance
from natjax_train import loop
from natjax_train.data.pipeline import Batches
from natjax_train.recipe import override
from natjax_train.recipes import RECIPES

BATCH, STEPS, WARM = 4, 24, 4
SETTINGS = {"batch_size": str(BATCH), "epochs": "1", "warmup_epochs": "0", "cooldown_epochs": "0", "log_every": "1"}


def timed(function, times):
    """Returns the function with an end to wait for; notes when its calls begin and how long they take."""

    def call(*arguments):
        begun = time.perf_counter()
        done = jax.block_until_ready(function(*arguments))
        times.append((begun, time.perf_counter() - begun))
        return done

    return call


def shares(steps, waits):
    """Returns medians, in milliseconds, of a whole step of the loop and its parts."""
    whole = np.diff([begun for begun, _ in steps])[WARM:]
    steps, waits = (np.array([took for _, took in times[WARM:]]) for times in (steps[:-1], waits[1:]))
    waits = waits[: len(whole)]
    rest = whole - steps - waits
    found = {"loop": whole, "compiled_step": steps, "waiting_for_data": waits, "python": rest}
    times = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in found.items()}
    return times | {"python_share": statistics.median(rest / whole)}


def main() -> None:
    """Measures, prints and writes."""
    argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__).parse_args()
    steps, waits, make = [], [], loop.make_training

    def make_timed(*arguments):
        training = make(*arguments)
        return dataclasses.replace(training, step=timed(training.step, steps))

    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.object(loop, "make_training", make_timed),
        mock.patch.object(Batches, "__next__", timed(Batches.__next__, waits)),
    ):
        folder = pathlib.Path(name)
        write_images(folder / "train", BATCH * STEPS, 2)
        write_images(folder / "val", BATCH, 2)
        loop.train(override(RECIPES["nat_mini"], SETTINGS), name, folder / "run")
    found = shares(steps, waits)
    print("\n".join(f"{name:20} {number:10.4f}" for name, number in found.items()))
    origin = {"provenance": provenance(dtype="float32"), "batch_size": BATCH, "steps": STEPS - WARM}
    write(RESULTS / "train_step_cpu.json", origin | found)


if __name__ == "__main__":
    main()
