"""Runs every code block of the README and the docs, in a folder that has what they speak of: photographs, data sets, weights.

Bash runs the shell blocks, but only writes down their commands; the test then runs these in its own process. The published
weights are random ones of a tiny NAT under the published names, and `natjax train` takes a few steps.
"""

import dataclasses
import importlib
import importlib.util
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import types

import numpy as np
import PIL.Image
import pytest
from flax import nnx

import natjax
import natjax_convert
from natjax import presets
from natjax.cli import main
from natjax.labels import coco
from natjax_train import loop

pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "natjax/demo/README.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
)
TOOLS = ("natjax", "pip", "python", "make", "srun", "ssh")
TINY = {"embed_dim": 32, "depths": (1, 1, 1), "num_heads": (1, 2, 4), "kernel_size": 3, "mlp_ratio": 1.0}
# What makes a command short. The last of several equal flags counts.
SHORT = {
    "train": "--epochs 1 --batch-size 8 --image-size 32 --workers 0 --warmup-epochs 0 --cooldown-epochs 0 --mesh data=1",
    "train masks": """--steps 2 --model-config '{"hidden_size": 8, "auxiliary_channels": 8}'""",
    "train boxes": """--steps 2 --longest-edge 64 --model-config '{"fpn_channels": 8, "rpn_channels": 8, "mask_channels": 8,
        "box_fc_channels": 8, "train_rpn_post_nms": 20, "rpn_post_nms": 20, "max_detections": 5}'""",
    "train digits": """--steps 2 --model-config '{"fpn_channels": 8, "rpn_channels": 8, "mask_channels": 8, "mask_num_convs": 1,
        "box_fc_channels": 8, "train_rpn_post_nms": 20, "rpn_post_nms": 20, "max_detections": 5,
        "backbone_config": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "kernel_size": 3}}'""",
    "bench": "--seconds 0.1 --image-size 32",
    "bench op": "--seconds 0.1",
}
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """Yields language, code and first line of a page's blocks of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        if match[1] in ("python", "sh"):
            yield match[1], match[2], text.count("\n", 0, match.start()) + 2


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page))])
def test_blocks_run(page, world):
    for language, code, line in blocks(page):
        print(f"{page}:{line}")
        if language == "python":
            exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), {"__name__": "__main__"})
        else:
            for tool, *arguments in commands(code):
                RUN[tool](arguments)


def test_the_guide_to_the_op_is_its_example(capsys):
    """Its code, in order, is examples/op.py without docstring and main; its blocks of text are what that prints."""
    code = (ROOT / "examples/op.py").read_text(encoding="utf-8").split('"""\n\n', 1)[1].split("\n\ndef main()")[0]
    assert "\n\n".join(shown for language, shown, _ in blocks("docs/op.md") if language == "python") == code
    runpy.run_path(str(ROOT / "examples/op.py"), run_name="__main__")
    printed = [
        match[2] for match in _FENCE.finditer((ROOT / "docs/op.md").read_text(encoding="utf-8")) if match[1] == "text"
    ]
    assert "".join(printed) == capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_blocks_that_are_run(page):
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    assert not re.findall(rf"^    (?:{'|'.join(TOOLS)}|for) .*", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def commands(code):
    """Yields the commands that bash would start for this code: name and arguments."""
    log = pathlib.Path("commands")
    log.write_text("")
    subprocess.run(["bash", "-euc", code], env={**os.environ, "PATH": f"bin:{os.environ['PATH']}"}, check=True)
    for command in log.read_bytes().split(b"\0\0")[:-1]:
        yield os.fsdecode(command).split("\0")


def run_natjax(arguments):
    name = "bench op" if arguments[:2] == ["bench", "op"] else arguments[0]
    arguments = [*arguments, *SHORT.get(name, "").split()]
    if name == "train" and {"finetune_masks", "upernet_nat_tiny"} & set(arguments):
        arguments += shlex.split(SHORT["train masks"])
    if name == "train" and {"finetune_boxes", "mask_rcnn_nat_tiny"} & set(arguments):
        arguments += shlex.split(SHORT["train boxes"])
    if "digits_boxes" in arguments:
        arguments += shlex.split(SHORT["train digits"])
    if "earth_masks" in arguments:  # small as it is
        arguments += ["--steps", "2"]
    arguments = [re.sub(r"^space=\d+$", "space=1", argument) for argument in arguments]  # the test has one device
    for flag in ("--coordinator", "--processes", "--process"):  # and is one process
        if flag in arguments:
            del arguments[arguments.index(flag) : arguments.index(flag) + 2]
    assert main(arguments) == 0, arguments


def run_pip(arguments):
    """Looks whether the extras of natjax exist; natjax itself is on no index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in arguments:
        assert not requirement.startswith("natjax"), requirement
        if match := re.fullmatch(r"\.(?:\[([\w,]+)\])?", requirement):
            assert set((match[1] or "").split(",")) - {""} <= set(project["optional-dependencies"]), requirement
        if requirement.startswith("requirements") or requirement.endswith(".txt"):
            assert (ROOT / requirement).is_file(), requirement


def run_make(arguments):
    target = next(argument for argument in arguments if "=" not in argument)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target


def run_python(arguments):
    """Runs the packing of records; of what takes long or needs further packages, only looks whether it is there."""
    if arguments[:2] == ["-m", "natjax_train.data.records"]:
        records = importlib.import_module(arguments[1])
        sys.argv = ["records", *arguments[2:]]
        assert records.main() == 0
    elif arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), arguments
    else:
        script = runpy.run_path(str(ROOT / arguments[0]))
        assert callable(script["main"]), arguments
        if arguments[:2] == ["examples/earth.py", "masks"]:
            make_masks(pathlib.Path(arguments[2]))
        elif arguments[0] == "examples/digits.py":
            for split in ("train", "val"):
                script["write"](pathlib.Path(arguments[1]), split, 8, [PIL.Image.new("RGB", (128, 128), "orange")])
        elif arguments[0] in ("examples/earth.py", "examples/photographs.py"):
            for split in ("train", "val"):
                make_images(pathlib.Path(arguments[2]) / split, channels=1 if "photographs" in arguments[0] else 3)


def run_on_a_host(arguments):
    """Runs what srun and ssh start, leaving out their own arguments."""
    start = arguments.index("natjax")
    RUN[arguments[start]](arguments[start + 1 :])


RUN = {
    "natjax": run_natjax,
    "pip": run_pip,
    "make": run_make,
    "python": run_python,
    "srun": run_on_a_host,
    "ssh": run_on_a_host,
}


def make_images(folder, channels=3, classes=2, images=8):
    rng = np.random.default_rng(0)
    for name in range(classes):
        (folder / f"class {name}").mkdir(parents=True)
        for i in range(images):
            pixels = rng.integers(0, 256, (32, 40, channels), np.uint8)
            PIL.Image.fromarray(pixels.squeeze()).save(folder / f"class {name}" / f"{i}.jpg")


def make_masks(folder, images=8):
    """Makes images of three classes and their masks."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(images):
            mask = rng.integers(0, 3, (32, 40), np.uint8)
            PIL.Image.fromarray(np.stack([mask * 80] * 3, -1)).save(folder / "images" / split / f"{i}.jpg")
            PIL.Image.fromarray(mask).save(folder / "masks" / split / f"{i}.png")
    (folder / "classes.txt").write_text("sky\nsea\nsand\n", encoding="utf-8")


def make_boxes(annotations, folders, categories=("apple", "pear"), images=8):
    """Makes images with an object each, and COCO's annotations of both splits: files and folders are of train and of val."""
    rng = np.random.default_rng(0)
    for path, folder in zip(map(pathlib.Path, annotations), map(pathlib.Path, folders), strict=True):
        folder.mkdir(parents=True)
        path.parent.mkdir(exist_ok=True)
        document = {"images": [], "annotations": [], "categories": []}
        document["categories"] = [{"id": i, "name": name} for i, name in enumerate(categories, 1)]
        for i in range(1, images + 1):
            PIL.Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8)).save(folder / f"{i}.jpg")
            document["images"].append({"id": i, "file_name": f"{i}.jpg", "height": 32, "width": 40})
            one = {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [8, 8, 16, 16], "area": 256, "iscrowd": 0}
            document["annotations"].append(one | {"segmentation": [[8, 8, 24, 8, 24, 24, 8, 24]]})
        path.write_text(json.dumps(document), encoding="utf-8")


def make_segmentation_model(name):
    """Makes a tiny UPerNet with random weights, for images within 64 x 32 pixels, and a file as mmsegmentation writes it."""
    config = natjax.UperNetConfig(
        backbone_config=natjax.NatConfig(**TINY), hidden_size=8, auxiliary_channels=8, num_labels=150
    )
    model = natjax.UperNetForSemanticSegmentation(config, rngs=nnx.Rngs(0))
    model.save_pretrained(name, processor=natjax.NatImageProcessor.semantic_segmentation(64, 32))
    shutil.copy(ROOT / "tests/goldens/mmseg_upernet_nat/checkpoint.pth", f"{name}.pth")


def make_detection_model(name):
    """Makes a tiny Mask R-CNN with random weights, for images within 133 x 80 pixels, and a file as mmdetection writes it."""
    two_levels = {**TINY, "depths": (1, 1), "num_heads": (1, 2)}  # which take less time to compile
    config = natjax.MaskRcnnConfig(
        backbone_config=natjax.NatConfig(**two_levels),
        id2label=dict(enumerate(coco())),
        fpn_channels=8,
        rpn_channels=8,
        rpn_post_nms=20,
        box_fc_channels=8,
        mask_channels=8,
        mask_num_convs=1,
        max_detections=5,
    )
    model = natjax.MaskRcnnForObjectDetection(config, rngs=nnx.Rngs(0))
    model.save_pretrained(name, processor=natjax.NatImageProcessor.object_detection(133, 80))
    natjax_convert.convert(name, f"{name}.pth")


class Hub(types.ModuleType):
    """Stands in for huggingface_hub, and takes what is pushed."""

    def get_token(self):
        return "hf_x"

    def HfApi(self):
        return self

    def create_repo(self, hub_id, **_):
        return f"https://huggingface.co/{hub_id}"

    def repo_info(self, _):
        return types.SimpleNamespace(private=False)

    def upload_folder(self, *, folder_path, **_):
        assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(
            os.listdir(folder_path)
        )


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Makes the folder, and goes there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATJAX_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    for tool in TOOLS:
        stub = tmp_path / "bin" / tool
        stub.parent.mkdir(exist_ok=True)
        # One write for each command, as some run side by side.
        stub.write_text("""#!/bin/sh\nprintf '%s\\0' "${0##*/}" "$@" '' >> commands\n""")
        stub.chmod(0o755)
    for name in ("cat.jpg", "orchard.jpg", "photo.jpg", "slide.tif", "street.jpg"):
        PIL.Image.new("RGB", (40, 32), "orange").save(name)
    for folder in ("flowers/train", "flowers/val", "imagenet/train", "imagenet/val"):
        make_images(tmp_path / folder)
    make_images(tmp_path / "photos")
    make_masks(tmp_path / "beach")
    files = [f"apples/annotations/{split}.json" for split in ("train", "val")]
    make_boxes(files, ["apples/images/train", "apples/images/val"])
    files = [f"coco/annotations/instances_{split}2017.json" for split in ("train", "val")]
    make_boxes(files, ["coco/train2017", "coco/val2017"], categories=("person", "car"))
    for name, preset in presets.PRESETS.items():
        if type(preset.config) is not natjax.NatConfig:
            continue
        dilations = None if preset.config.dilations is None else ((1,),) * 3
        config = preset.config.replace(**TINY, dilations=dilations)
        monkeypatch.setitem(presets.PRESETS, name, dataclasses.replace(preset, config=config))
    mini = natjax.create_model("nat_mini")
    mini.save_pretrained("weights/nat_mini", processor=natjax.NatImageProcessor.imagenet(32))
    shutil.copytree("weights/nat_mini", "weights/nat_tiny")
    shutil.copytree("weights/nat_mini", "shi-labs/nat-mini-in1k-224")  # a local folder goes before the Hub
    natjax_convert.convert("weights/nat_mini", "nat_mini.pth")
    make_segmentation_model("upernet_nat_tiny")
    make_detection_model("mask_rcnn_nat_tiny")
    shutil.copytree(ROOT / "natjax/demo/digits", "natjax/demo/digits")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub("huggingface_hub"))
    train = loop.train
    trained = {}

    def train_once(recipe, data, out, **options):
        """Trains on the digits once, and once on a folder of each task; other runs get the folder of that one."""
        key = "digits" if str(data) == "digits" else recipe.task
        if key not in trained:
            trained[key] = train(recipe, data, out, **options)
        elif not pathlib.Path(out).exists():
            shutil.copytree(trained[key].parent, out)
        return pathlib.Path(out) / "model"

    monkeypatch.setattr(loop, "train", train_once)
