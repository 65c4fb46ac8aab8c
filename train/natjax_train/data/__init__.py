"""The input pipeline: sources of images, what happens to them, and batches in a reproducible order."""

from natjax_train.data.classes import match_classes
from natjax_train.data.open import open_source, open_splits
from natjax_train.data.pipeline import Batches, eval_loader, steps_per_epoch, train_loader
from natjax_train.data.plausible import check_splits, check_training, remarks
from natjax_train.data.sources import Digits, ImageFolder, Source, split_folders
from natjax_train.data.transforms import eval_processor

__all__ = [
    "Batches",
    "Digits",
    "ImageFolder",
    "Source",
    "check_splits",
    "check_training",
    "eval_loader",
    "eval_processor",
    "match_classes",
    "open_source",
    "open_splits",
    "remarks",
    "split_folders",
    "steps_per_epoch",
    "train_loader",
]
