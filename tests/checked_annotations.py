"""Has jaxtyping and beartype check the annotations of shapes and dtypes in the modules below, at every call in the tests."""

import importlib
import importlib.abc
import sys

import jax
import jaxtyping
import numpy as np
from jax.typing import DTypeLike

# Public entry points are not among them: they check their arguments themselves, and tests look at what they say.
CHECKED = (
    "natjax.detection.boxes",
    "natjax.detection.coco",
    "natjax.detection.inference",
    "natjax.detection.lists",
    "natjax.detection.losses",
    "natjax.detection.masks",
    "natjax.detection.matching",
    "natjax.detection.nms",
    "natjax.detection.padding",
    "natjax.detection.roi_align",
    "natjax.losses",
    "natjax.models.detection.fpn",
    "natjax.models.detection.roi_heads",
    "natjax.models.detection.rpn",
    "natjax.nn.batch_norm",
    "natjax.nn.blocks",
    "natjax.nn.conv_block",
    "natjax.nn.initializers",
    "natjax.nn.layers",
    "natjax.nn.resizing",
    "natjax.nn.xla",
    "natjax.outputs",
    "natjax_kernels.bias",
    "natjax_kernels.reference",
    "natjax_train.augment.boxes",
    "natjax_train.augment.device",
    "natjax_train.optim",
    "natjax_train.tasks.classification",
)


class _WithNames(importlib.abc.MetaPathFinder):
    """Gives the checked modules what their annotations name and what they import for type checkers only."""

    def __init__(self):
        self._names = {"DTypeLike": DTypeLike} | {
            name: getattr(jaxtyping, name)
            for name in ("Bool", "Float", "Float32", "Int", "Int32", "Num", "UInt8", "UInt32")
        }
        self._names["Array"] = jax.Array | np.ndarray  # outside of jit, JAX takes both

    def find_spec(self, name, path, target=None):
        if name not in CHECKED:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others))
        run = spec.loader.exec_module

        def exec_module(module):
            vars(module).update(self._names)
            run(module)

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Imports the modules, with all that they need, for the tests."""
    finder = _WithNames()
    with jaxtyping.install_import_hook(CHECKED, "beartype.beartype"):
        sys.meta_path.insert(0, finder)
        try:
            for module in CHECKED:
                importlib.import_module(module)
        finally:
            sys.meta_path.remove(finder)
