"""Times the input pipeline beside PyTorch's: prints a table, writes results/data_cpu.json; some 4 minutes on two cores.

Both sides read the same JPEG files and do the same work in Pillow: decode, random resized crop to 224 px (bicubic), flip, and
in one of two cases RandAugment; they end with batches of uint8 images. PyTorch's side is a DataLoader over a data set with
torchvision's transforms, written out here. Samples of the two alternate, in one run; a row has their medians, and the median of
the ratios of neighbours. Without workers time is the processor's, so that a row is images per second of one core; with workers it
is the clock's. Workers start anew for every sample, and what they read ahead before it is not counted.
"""

import argparse
import math
import pathlib
import statistics
import tempfile
import time

import numpy as np
import PIL.Image
import torch

from benchmarks.harness import RESULTS, write
from benchmarks.images import SIDES, write_images
from benchmarks.provenance import provenance
from natjax.presets import IMAGENET_MEAN
from natjax_train.augment.randaugment import rand_augment
from natjax_train.augment.settings import HostSettings
from natjax_train.data import ImageFolder, train_loader

IMAGES, BATCH, SIZE, WARM, REPEATS = 256, 32, 224, 4, 5
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
CASES = {"crop and flip": "", "RandAugment": "rand-m9-mstd0.5-inc1"}
WORKERS = [(0, "threads", 8), (2, "threads", 20), (2, "processes", 20)]  # how many, of which kind (here), batches timed


class Images(torch.utils.data.Dataset):
    """torchvision's ImageFolder, RandomResizedCrop and RandomHorizontalFlip, then timm's RandAugment where asked for.

    RandAugment's operations are a dozen calls of Pillow, for which both sides share one piece of code.
    """

    def __init__(self, folder, auto_augment):
        self.paths, self.auto_augment = sorted(pathlib.Path(folder).glob("*/*.jpg")), auto_augment
        self.classes = sorted({path.parent.name for path in self.paths})

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with open(self.paths[index], "rb") as file:
            image = PIL.Image.open(file).convert("RGB")
        left, top, width, height = crop_of(*image.size)
        image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC)
        if torch.rand(1) < 0.5:
            image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        if self.auto_augment:
            rng = np.random.default_rng(int(torch.randint(2**62, (1,))))
            image = rand_augment(image, rng, self.auto_augment, IMAGENET_MEAN)
        label = self.classes.index(self.paths[index].parent.name)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), label


def crop_of(width, height):
    """Returns left, top, width and height of a crop, drawn as torchvision's RandomResizedCrop draws it."""
    log_ratio = torch.log(torch.tensor(RATIO))
    while True:
        area = width * height * torch.empty(1).uniform_(*SCALE).item()
        ratio = torch.exp(torch.empty(1).uniform_(*log_ratio.tolist())).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = torch.randint(0, width - w + 1, (1,)), torch.randint(0, height - h + 1, (1,))
            return left.item(), top.item(), w, h


def ours(folder, auto_augment, workers, kind, seed):
    """Returns natjax's iterator over training batches."""
    crop = {"crop_scale": SCALE, "crop_ratio": RATIO, "train_interpolation": "bicubic"}
    settings = HostSettings(**crop, auto_augment=auto_augment, image_mean=IMAGENET_MEAN)
    options = {"batch_size": BATCH, "image_size": SIZE, "num_channels": 3, "augmentation": settings, "seed": seed}
    return train_loader(ImageFolder(folder), **options, workers=workers, worker_kind=kind)


def torchs(folder, auto_augment, workers, kind, seed):
    """Returns PyTorch's, whose workers are processes always, over as many epochs as it takes."""
    torch.manual_seed(seed)
    images = Images(folder, auto_augment)
    sampler = torch.utils.data.RandomSampler(images, replacement=False, num_samples=4 * len(images))
    return iter(torch.utils.data.DataLoader(images, BATCH, sampler=sampler, num_workers=workers, drop_last=True))


def sample(make, folder, auto_augment, workers, kind, count, seed):
    """Returns images per second."""
    batches = make(folder, auto_augment, workers, kind, seed)
    for _ in range(WARM if workers else 1):
        next(batches)
    clock = time.perf_counter if workers else time.process_time
    start = clock()
    for _ in range(count):
        next(batches)
    return count * BATCH / (clock() - start)


def main():
    argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__).parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        size = write_images(pathlib.Path(folder), IMAGES, 4)
        print(f"{IMAGES} JPEG files of {SIDES[0]} x {SIDES[1]}, {size / 1000:.0f} KB on average; images per second")
        for case, auto_augment in CASES.items():
            for workers, kind, count in WORKERS:
                arguments = (folder, auto_augment, workers, kind, count)
                pairs = [[sample(make, *arguments, seed) for make in (ours, torchs)] for seed in range(REPEATS)]
                ratio = statistics.median(a / b for a, b in pairs)
                here, there = (statistics.median(column) for column in zip(*pairs, strict=True))
                what = f"{workers} {kind}" if workers else "one core, no workers"
                print(f"{case:14} {what:22} natjax {here:6.1f}  torch {there:6.1f}  ratio {ratio:.2f}", flush=True)
                rows.append({"case": case, "workers": workers, "kind": kind if workers else None, "natjax": here})
                rows[-1] |= {"torch": there, "ratio": ratio, "samples": pairs}
    origin = provenance(file_bytes=size, image=SIDES, batch=BATCH)
    write(RESULTS / "data_cpu.json", {"provenance": origin, "images_per_second": rows})


if __name__ == "__main__":
    main()
