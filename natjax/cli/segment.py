"""`natjax segment`: the class of every pixel of images, as coloured maps and as a table of shares."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.cli._arguments import add_dtype_argument, image_size
from natjax.cli._config import read_given
from natjax.cli._images import add_image_arguments, find_images, run_pipeline
from natjax.cli._mesh import add_mesh_arguments, image_sharding
from natjax.cli._output import complain, print_json, print_table
from natjax.cli._pictures import picture_folder, picture_names, write_picture
from natjax.hub import locate
from natjax.text import printable

if TYPE_CHECKING:
    import PIL.Image

HELP = "say what every pixel of images shows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_image_arguments(parser, batch_size=1)
    add_mesh_arguments(parser)
    add_dtype_argument(parser)
    parser.add_argument("--out", default="segments", metavar="DIR", help="folder to write into (default: segments)")
    parser.add_argument(
        "--palette",
        metavar="NAME|FILE",
        help="colours: ade20k, cityscapes, a text file with `r g b name` or `#rrggbb name` per class, or a PNG with a palette "
        "(default: the model's own, or else by the number of classes)",
    )
    parser.add_argument(
        "--overlay", action="store_true", help="also write NAME_overlay.png: the colours over the image, with a legend"
    )
    parser.add_argument(
        "--crop-size", type=image_size, metavar="N|HxW", help="slide windows of N pixels instead of taking images whole"
    )
    parser.add_argument(
        "--stride",
        type=image_size,
        metavar="N|HxW",
        help="from one window to the next (default: two thirds of a window)",
    )
    parser.add_argument(
        "--multi-scale", action="store_true", help="average over six sizes and mirror images: slower, a little better"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Segments the images; returns 1 where one was skipped."""
    from natjax.segmentation.palettes import load_palette

    if args.palette is not None:
        load_palette(args.palette)  # to be known before the work, not after it
    checkpoint = locate(args.model)
    skipped: list[tuple[str, str]] = []
    paths = find_images(args.images, skipped)
    names = picture_names(paths, [".png", "_overlay.png"] if args.overlay else [".png"])
    out = picture_folder(args.out, names)
    pipe = _pipeline(args, checkpoint)
    palette, labels = _palette_and_labels(args.palette, pipe.model.config)
    results = []
    for path, class_map in run_pipeline(pipe, paths, skipped, args.max_pixels):
        pictures = _pictures(path, class_map, palette, labels, args.overlay)
        files = [out / name for name in names[path]]
        for file, picture in zip(files, pictures, strict=False):
            write_picture(file, picture, format="PNG")
        result = _result(path, files, class_map, labels)
        if args.json:
            results.append(result)
        else:
            _print(result)
    if args.json:
        reasons = [{"image": path, "reason": reason} for path, reason in skipped]
        print_json({"model": args.model, "results": results, "skipped": reasons})
    return 1 if skipped else 0


def _pipeline(args: argparse.Namespace, checkpoint: Path) -> Any:
    from natjax.pipelines import pipeline

    config, processor = read_given(args.config)
    return pipeline(
        "image-segmentation",
        checkpoint,
        config=config,
        processor=processor,
        batch_size=args.batch_size,
        full_size=args.full_size,
        sharding=image_sharding(args.mesh),
        crop_size=args.crop_size,
        stride=args.stride,
        scales="multi" if args.multi_scale else None,
        flip=args.multi_scale,
        dtype=args.dtype,
        report=complain,
    )


def _palette_and_labels(source: str | None, config: Any) -> tuple[Any, dict[int, str]]:
    """Returns the colours of the classes, and their names: those of a palette that was asked for where the model has none."""
    from natjax.segmentation.palettes import load_palette, palette_for, palette_of

    labels = dict(config.id2label)
    colours = palette_of(config) if source is None else palette_for(config.num_labels, source)
    if source is not None and all(label == f"LABEL_{index}" for index, label in labels.items()):
        labels = {i: name or labels[i] for i, name in enumerate(load_palette(source).names[: len(labels)])}
    return colours, labels


def _pictures(path: str, class_map: Any, palette: Any, labels: dict[int, str], overlay: bool) -> list[PIL.Image.Image]:
    from natjax import segmentation
    from natjax.images import load_image

    pictures = [segmentation.coloured(class_map, palette)]
    if overlay:
        blended = segmentation.overlay(load_image(path), class_map, palette)
        shares = segmentation.shares(class_map, len(labels))
        pictures.append(segmentation.with_legend(blended, shares, palette, labels))
    return pictures


def _result(path: str, files: list[Path], class_map: Any, labels: dict[int, str]) -> dict[str, Any]:
    """Returns what is said of an image: its classes, those of most pixels first."""
    import numpy as np

    pixels = np.bincount(class_map.ravel(), minlength=len(labels))
    present = [int(i) for i in np.argsort(-pixels, kind="stable") if pixels[i]]
    classes = [
        {"label": labels[i], "index": i, "pixels": int(pixels[i]), "share": float(pixels[i] / class_map.size)}
        for i in present
    ]
    result = {"image": path, "map": str(files[0]), "height": class_map.shape[0], "width": class_map.shape[1]}
    return {**result, **({"overlay": str(files[1])} if len(files) > 1 else {}), "classes": classes}


def _print(result: dict[str, Any]) -> None:
    from natjax.segmentation.pictures import percent

    written = ", ".join(printable(result[name]) for name in ("map", "overlay") if name in result)
    print(f"{printable(result['image'])}: {written}")
    rows = [(printable(c["label"]), percent(c["share"]), f"{c['pixels']:,}") for c in result["classes"]]
    print_table(("class", "share", "pixels"), rows, indent="  ")
