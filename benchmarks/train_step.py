"""Times what is not the compiled step in a training run: `python -m benchmarks.train_step`, results/train_step_cpu.json.

The real loop trains NAT-Mini at 224 pixels on JPEG files (recipe nat_mini: RandAugment, mixup, cutmix, erasing), with its step
made to finish before it returns. So the time of the loop outside of the step is all of Python's: metrics, logging, putting
batches on the device. In a real run much of it passes while the devices work. Waiting for data is apart. Medians of one run.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import PIL.Image

from benchmarks.provenance import provenance
from natjax_train import data, loop
from natjax_train.recipe import override
from natjax_train.recipes import RECIPES

RESULTS = pathlib.Path(__file__).parent / "results" / "train_step_cpu.json"
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
        return {
            "loop_ms": 1e3 * statistics.median(whole),
            "compiled_step_ms": 1e3 * statistics.median(steps),
            "waiting_for_data_ms": 1e3 * statistics.median(waits),
            "python_ms": 1e3 * statistics.median(rest),
            "python_share": statistics.median(rest / whole),
        }


def write_images(folder: pathlib.Path) -> None:
    """Writes JPEG files of noise, blurred so that they cost what photographs cost."""
    rng = np.random.default_rng(0)
    for part, count in (("train", BATCH * STEPS), ("val", BATCH)):
        for number in range(count):
            path = folder / part / str(number % 2) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = PIL.Image.fromarray(rng.integers(0, 256, (47, 63, 3), np.uint8))
            noise.resize((500, 375), PIL.Image.Resampling.BICUBIC).save(path, quality=90)


def main() -> None:
    """Measures, prints and writes."""
    clocks = Clocks()
    loop.make_training = functools.partial(clocks.training, loop.make_training)
    data.train_loader = functools.partial(clocks.train_loader, data.train_loader)
    with tempfile.TemporaryDirectory() as folder:
        write_images(pathlib.Path(folder))
        loop.train(override(RECIPES["nat_mini"], SETTINGS), folder, pathlib.Path(folder) / "run")
    found = clocks.shares()
    for name, number in found.items():
        print(f"{name:20} {number:10.3f}" if name != "python_share" else f"{name:20} {number:10.2%}")
    report = {"provenance": provenance(dtype="float32"), "batch_size": BATCH, "steps": STEPS - WARM, **found}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
