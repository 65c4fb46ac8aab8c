"""Times what is not the compiled step in a training run: prints shares, writes results/train_step_cpu.json; some 3 minutes.

The real loop trains NAT-Mini at 224 pixels on JPEG files (recipe nat_mini: RandAugment, mixup, cutmix, erasing), with its step
made to finish before it returns. So the time of the loop outside of the step is all of Python's: metrics, logging, putting
batches on the device. In a real run much of it passes while the devices work. Waiting for data is apart. Medians of one run.
"""

import argparse
import dataclasses
import functools
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

from benchmarks.harness import RESULTS, write
from benchmarks.images import write_images
from benchmarks.provenance import provenance
from natjax_train import data, loop
from natjax_train.recipe import override
from natjax_train.recipes import RECIPES

BATCH, STEPS, WARM = 4, 24, 4
SETTINGS = {"batch_size": str(BATCH), "epochs": "1", "warmup_epochs": "0", "cooldown_epochs": "0", "log_every": "1"}


class Clocks:
    """Wraps what makes the step and the loader, and notes the time that each call takes."""

    def __init__(self):
        self.entered, self.steps, self.waits = [], [], []

    def training(self, make, *arguments):
        training = make(*arguments)

        def timed(state, batch):
            self.entered.append(time.perf_counter())
            done = jax.block_until_ready(training.step(state, batch))
            self.steps.append(time.perf_counter() - self.entered[-1])
            return done

        return dataclasses.replace(training, step=timed)

    def train_loader(self, make, *arguments, **options):
        loader = make(*arguments, **options)
        read = type(loader).__next__

        class Timed(type(loader)):
            def __next__(inner):
                before = time.perf_counter()
                batch = read(inner)
                self.waits.append(time.perf_counter() - before)
                return batch

        loader.__class__ = Timed
        return loader

    def shares(self):
        """Returns medians, in milliseconds, of a whole step of the loop and its parts."""
        whole = np.diff(self.entered)[WARM:]
        steps, waits = np.array(self.steps[WARM:-1]), np.array(self.waits[WARM + 1 :])
        rest = whole - steps - waits[: len(whole)]
        found = {"loop": whole, "compiled_step": steps, "waiting_for_data": waits, "python": rest}
        times = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in found.items()}
        return times | {"python_share": statistics.median(rest / whole)}


def main() -> None:
    """Measures, prints and writes."""
    argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__).parse_args()
    clocks = Clocks()
    loop.make_training = functools.partial(clocks.training, loop.make_training)
    data.train_loader = functools.partial(clocks.train_loader, data.train_loader)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_images(folder / "train", BATCH * STEPS, 2)
        write_images(folder / "val", BATCH, 2)
        loop.train(override(RECIPES["nat_mini"], SETTINGS), name, folder / "run")
    found = clocks.shares()
    print("\n".join(f"{name:20} {number:10.4f}" for name, number in found.items()))
    origin = {"provenance": provenance(dtype="float32"), "batch_size": BATCH, "steps": STEPS - WARM}
    write(RESULTS / "train_step_cpu.json", origin | found)


if __name__ == "__main__":
    main()
