"""`natjax convert`: a checkpoint from one format into another."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from natjax.cli._config import read_given
from natjax.cli._output import complain
from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME
from natjax.hub import locate
from natjax.text import first_few, printable

if TYPE_CHECKING:
    from natjax.configuration import NatConfig

HELP = "convert a checkpoint between formats"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "src", metavar="SRC", help="checkpoint to read: a folder, a run's folder, .safetensors, .bin, .pth or a name"
    )
    parser.add_argument("dst", metavar="DST", help="folder (hf) or file such as x.pth (shilabs, mmseg, mmdet) to write")
    parser.add_argument(
        "--to", choices=("hf", "shilabs", "mmseg", "mmdet"), help="format to write (default: what DST is named like)"
    )
    parser.add_argument("--config", metavar="NAME|FILE", help="the model, where SRC has no config.json")
    parser.add_argument(
        "--dilations",
        type=_dilations,
        metavar="JSON",
        help="of each layer by level: [[1,8,1],[1,4]]; 'none' for NAT",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at DST")


def run(args: argparse.Namespace) -> int:
    """Converts and says what was written."""
    from natjax.processors import describe_default
    from natjax_convert import convert
    from natjax_convert.config_texts import untold

    source = locate(args.src)
    config, processor = read_given(args.config)
    report = convert(
        source,
        args.dst,
        config=config,
        processor=processor,
        dilations=args.dilations,
        to=args.to,
        overwrite=args.overwrite,
    )
    config, src = report.config, printable(args.src)
    print(f"{src} ({report.source} {report.kind}) -> {printable(args.dst)} ({report.to})")
    trunk = config.trunk
    family = config.model_type if trunk is config else f"{config.model_type} on {trunk.model_type}"
    print(f"  {family}, classes: {config.num_labels}, depths: {'-'.join(map(str, trunk.depths))}")
    if report.to in ("mmseg", "mmdet"):
        unsaid = untold(config)
        why = f"its config text cannot say {first_few(unsaid)}" if unsaid else "a .pth says nothing of image processing"
        files = f"{CONFIG_NAME} and {PROCESSOR_NAME}" if unsaid else PROCESSOR_NAME
        complain(f"{why}: keep the {files} of {src}")
    elif report.to == "shilabs":
        complain(f"a .pth holds weights alone: keep the {CONFIG_NAME} and {PROCESSOR_NAME} of {src}")
    elif report.processor in ("default", "none"):
        default = describe_default(config)
        wrote = f"wrote one that prepares images {default}; replace it if the model was trained otherwise"
        complain(
            f"{src} comes without a {PROCESSOR_NAME}: {wrote if report.processor == 'default' else f'wrote none, as {default}'}"
        )
    if report.kind == "classifier" and _might_be_imagenet(config):
        complain(
            "the 1000 classes are named LABEL_0 and so on: where they are those of ImageNet, --config with a name of "
            "`natjax list` says what they are"
        )
    print(f"  {report.tensors} tensors, {report.parameters:,} parameters, {report.seconds:.1f} s")
    return 0


def _might_be_imagenet(config: NatConfig) -> bool:
    names = config.id2label or {}
    return len(names) == 1000 and names[0] == "LABEL_0"


def _dilations(text: str) -> Any:
    try:
        return text if text == "none" else json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be 'none' or JSON: {error}") from error
