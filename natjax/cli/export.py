"""`natjax export`: a model as a program that runs without natjax."""

from __future__ import annotations

import argparse

from natjax.cli._arguments import image_size, positive_int
from natjax.cli._config import read_given
from natjax.cli._output import complain
from natjax.hub import locate
from natjax.text import printable

HELP = "write a model as StableHLO or ONNX, to run without natjax"
_TASKS = ("image-classification", "image-feature-extraction", "image-segmentation")
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="checkpoint: a folder, a file, a run's folder, a name of `natjax list` or a Hugging Face id",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write; classify, features and segment take it as --model")
    parser.add_argument(
        "--format",
        choices=("stablehlo", "onnx"),
        default="stablehlo",
        help="for JAX or for onnxruntime (default: stablehlo)",
    )
    parser.add_argument(
        "--task", choices=_TASKS, help="what the model is exported for (default: what it was trained for)"
    )
    parser.add_argument(
        "--platforms",
        type=_platforms,
        default=("cpu", "cuda", "tpu"),
        metavar="P,...",
        help=f"of StableHLO: {', '.join(_PLATFORMS)} (default: cpu,cuda,tpu)",
    )
    parser.add_argument("--batch", type=_batch, metavar="N|any", help="images per call (default: any)")
    parser.add_argument(
        "--image-size",
        type=_size,
        metavar="S|HxW",
        help="of the images that it takes, in pixels (default: what its image processor makes; segmentation: 512)",
    )
    parser.add_argument(
        "--input-dtype",
        choices=("float32", "uint8"),
        default="float32",
        help="prepared images, or pixels of 0..255 that the program rescales and normalises (default: float32)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the computation; ONNX is float32 (default: float32)",
    )
    parser.add_argument(
        "--config", metavar="NAME|FILE", help="the model's architecture, where MODEL has no config.json"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in OUT")


def run(args: argparse.Namespace) -> int:
    """Exports a model, opens what was written and says what it takes and returns."""
    from natjax.exporting import ExportedModel, export

    source = locate(args.model)
    config, processor = read_given(args.config)
    path = export(
        source,
        args.out,
        format=args.format,
        task=args.task,
        platforms=args.platforms,
        batch=args.batch,
        image_size=args.image_size,
        input_dtype=args.input_dtype,
        dtype=args.dtype,
        config=config,
        processor=processor,
        overwrite=args.overwrite,
    )
    print(f"{printable(args.model)} -> {printable(str(path))} ({path.stat().st_size / 1e6:.1f} MB)")
    try:
        model = ExportedModel.open(path)
    except ImportError as error:
        complain(f"not opened: {error}")
        return 0
    shape = ", ".join("any" if side is None else str(side) for side in model.program.shape)
    print(f"  {model.task}: {model.program.dtype} [{shape}] -> {', '.join(model.program.outputs)}")
    return 0


def _batch(text: str) -> int | None:
    return None if text == "any" else positive_int(text)


def _size(text: str) -> str | tuple[int, int]:
    return text if text == "any" else image_size(text)  # which the export refuses, and says why


def _platforms(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if set(names) - set(_PLATFORMS):
        raise argparse.ArgumentTypeError(f"must be of {','.join(_PLATFORMS)}; got {text!r}")
    return names
