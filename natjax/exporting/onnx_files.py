"""ONNX: jax2onnx writes it, onnxruntime runs it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import export

from natjax.errors import install_line
from natjax.exporting.primitives import evaluate

if TYPE_CHECKING:
    from natjax.exporting.functions import Function
    from natjax.exporting.options import Options

OPSET = 21
INPUT = "pixel_values"  # as Hugging Face names it
_ANY = "batch"


def check_installed(package: str) -> None:
    """Checks for a package of the extra "onnx".

    Raises:
        ImportError: it is missing.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"ONNX needs one more package, {package}: {install_line('onnx')}.")


def serialized(function: Function, options: Options) -> bytes:
    """Returns the bytes of an ONNX model.

    The model is traced here. jax2onnx gets plain primitives: it would otherwise put functions of its own in place of Flax's
    modules, which take fewer arguments, and has no word for primitives of natjax's.
    """
    import jax2onnx

    batch = export.symbolic_shape(_ANY)[0] if options.batch is None else options.batch
    traced, shapes = jax.make_jaxpr(function.call, return_shape=True)(function.images(batch))
    images = jax.ShapeDtypeStruct((options.batch or _ANY, *function.images(batch).shape[1:]), function.input_dtype)
    with _quiet():
        model = jax2onnx.to_onnx(
            lambda pixels: tuple(evaluate(traced.jaxpr, traced.consts, [pixels])),
            [images],
            model_name="natjax",
            opset=OPSET,
            return_mode="proto",
            input_names=[INPUT],
            output_names=list(shapes),
        )
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keeps to themselves what jax2onnx and what it stands on say of packages that they do without."""
    names = ("jax2onnx", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class Program:
    """A file of ONNX, run by onnxruntime; for attributes see `natjax.exporting.stablehlo.Program`."""

    def __init__(self, path: Path):
        """Reads it; whatever is wrong with the file is an exception of any kind."""
        check_installed("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self._session: Any = onnxruntime.InferenceSession(
            path, options, providers=onnxruntime.get_available_providers()
        )
        (images,) = self._session.get_inputs()
        self._input = images.name
        self.shape = tuple(side if isinstance(side, int) else None for side in images.shape)
        self.dtype = np.dtype({"tensor(float)": "float32", "tensor(uint8)": "uint8"}[images.type])
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns its outputs by name."""
        return dict(zip(self.outputs, self._session.run(None, {self._input: images}), strict=True))
