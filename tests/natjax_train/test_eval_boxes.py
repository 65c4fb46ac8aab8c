"""`natjax eval` of a detector: COCO's figures of what `natjax detect` finds, and what it refuses."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import PIL.Image
import pytest
from flax import nnx

import natjax
from natjax import demo
from natjax.cli import main
from natjax.detection.coco import results as coco_results
from natjax_train.recipes import RECIPES
from natjax_train.tasks.average_precision import evaluate

pytestmark = pytest.mark.once
NAMES, IDS = ("ant", "bee", "cat"), {"cat": 4, "ant": 9}  # the model's classes, those of the data
TRUNK = {"embed_dim": 4, "depths": (1, 1, 1, 1), "num_heads": (1,) * 4, "kernel_size": 3}
HEADS = {"fpn_channels": 6, "rpn_channels": 5, "box_fc_channels": 8, "mask_channels": 4, "mask_threshold": 0.45}
HEADS |= {"rpn_pre_nms": 30, "rpn_post_nms": 20, "max_detections": 12}
PROCESSOR = natjax.NatImageProcessor.object_detection(96, 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Mask R-CNN whose random weights see objects of all classes."""
    folder = tmp_path_factory.mktemp("model")
    backbone = natjax.NatConfig(**TRUNK).replace(out_features=("stage1", "stage2", "stage3", "stage4"))
    config = natjax.MaskRcnnConfig(backbone_config=backbone, **HEADS, id2label=dict(enumerate(NAMES)))
    net = natjax.MaskRcnnForObjectDetection(config, rngs=nnx.Rngs(5))
    net.roi_head.bbox_head[0].fc_cls.kernel[...] *= 30
    net.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    """Images, and what the pipeline finds in them, as COCO's results."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    detect = natjax.pipeline("object-detection", model, masks=True)
    results = []
    for number in range(4):
        noise = PIL.Image.fromarray(rng.integers(0, 256, (5, 8, 3), np.uint8))
        path = folder / f"{number}.png"
        noise.resize((90 + number, 60), PIL.Image.Resampling.BICUBIC).save(path)
        results += coco_results(detect.detections(path), range(3), number)
    return folder, results


@pytest.fixture(scope="module")
def data(found, tmp_path_factory):
    """Images whose annotations are near to every other one of these results."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(found[0], folder / "images" / "val")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "val.json").write_text(json.dumps(document(found[1])))
    return folder


def document(results):
    images = [{"id": 50 - n, "file_name": f"{n}.png", "width": 90 + n, "height": 60} for n in range(4)]
    annotations = []
    for number, (result, shift) in enumerate(
        zip(named(results)[::2], np.random.default_rng(1).random(99), strict=False)
    ):
        x, y, width, height = result["bbox"]
        moved = [x + shift * width / 4, y, width, height]
        annotations.append({"id": number, **result, "bbox": moved, "area": width * height / 2, "iscrowd": 0})
    return {"images": images, "categories": [{"id": i, "name": n} for n, i in IDS.items()], "annotations": annotations}


def named(results):
    """Returns results of the classes that the data have, with the data's numbers."""
    return [
        result | {"image_id": 50 - result["image_id"], "category_id": IDS[name]}
        for result in results
        if (name := NAMES[result["category_id"]]) in IDS
    ]


def run(capsys, *arguments):
    code = main(["eval", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_what_is_found_and_how_good_it_is(capsys, tmp_path, model, data, found):
    files = ["--csv", tmp_path / "classes.csv", "--results", tmp_path / "results.json"]
    code, out, err = run(capsys, "--model", model, "--data", data, "--json", *files)
    assert code == 0, err
    printed, written = json.loads(out), json.loads((tmp_path / "results.json").read_text())
    expected = sorted(named(found[1]), key=lambda each: each["image_id"])
    assert len(written) == len(expected) > 20
    for one, other in zip(written, expected, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        np.testing.assert_allclose([*one["bbox"], one["score"]], [*other["bbox"], other["score"]], rtol=0, atol=1e-3)
        assert one["segmentation"]["size"] == other["segmentation"]["size"]
    truth = json.loads((data / "annotations" / "val.json").read_text())
    metrics = evaluate(truth, written)
    assert {name: printed[name] for name in metrics.summary()} == pytest.approx(
        {name: None if np.isnan(x) else x for name, x in metrics.summary().items()}
    )
    for name, score in evaluate(truth, expected).summary().items():
        assert np.isnan(score) or printed[name] == pytest.approx(score, abs=1e-6), name
    assert 0.1 < printed["mask_ap"] != printed["box_ap"] < 0.9
    assert (printed["images"], printed["warnings"]) == (4, [])
    assert [each["class"] for each in printed["classes"]] == list(IDS)
    rows = [line.split(",") for line in (tmp_path / "classes.csv").read_text().splitlines()]
    assert rows[0] == ["class", "objects", "box_ap", "box_ap50", "mask_ap", "mask_ap50"]
    for row, each, (objects, *scores) in zip(rows[1:], printed["classes"], metrics.per_class(), strict=True):
        assert row == list(map(str, each.values()))
        assert [each["objects"], *(each[name] for name in rows[0][2:])] == [objects, *scores]
    assert f"4 images, 2 classes; model {model}" in err
    assert f"results.json: wrote {len(written)} results" in err


@pytest.mark.filterwarnings("default:.*cannot be read")
def test_text_and_images_that_cannot_be_read(capsys, tmp_path, model, data):
    broken = shutil.copytree(data, tmp_path / "data")
    (broken / "images" / "val" / "1.png").write_bytes(b"no image")
    code, out, err = run(capsys, "--model", model, "--data", broken, "--results", tmp_path / "results.json")
    first, _, head, box, mask, _, columns, *classes = out.splitlines()
    assert code == 1
    assert first.startswith("3 images, ")
    assert head.split() == ["AP", "AP50", "AP75", "small", "medium", "large", "AR1", "AR10", "AR100"]
    assert (box.split()[0], mask.split()[0], len(box.split())) == ("box", "mask", 10)
    assert columns.split() == ["class", "objects", "box_ap", "box_ap50", "mask_ap", "mask_ap50"]
    assert [row.split()[0] for row in classes] == list(IDS)
    assert "1 image could not be read and is not counted" in err
    truth = json.loads((data / "annotations" / "val.json").read_text())
    seen = [image["id"] for image in truth["images"] if image["file_name"] != "1.png"]
    scores = evaluate(truth, json.loads((tmp_path / "results.json").read_text()), seen).summary()
    assert box.split()[1] == f"{scores['box_ap']:.1%}"


def test_images_that_a_run_held_out(capsys, tmp_path, model, data):
    shutil.copytree(data / "images" / "val", tmp_path / "data" / "images" / "train")
    (tmp_path / "data" / "annotations").mkdir()
    shutil.copy(data / "annotations" / "val.json", tmp_path / "data" / "annotations" / "train.json")
    code, _, err = run(capsys, "--model", model, "--data", tmp_path / "data")
    assert code == 1
    assert "has no annotations for val" in err
    shutil.copytree(model, tmp_path / "run" / "model")
    recipe = dataclasses.replace(RECIPES["finetune_boxes"], val_fraction=0.5, seed=3)
    (tmp_path / "run" / "recipe.json").write_text(recipe.to_json())
    code, out, err = run(capsys, "--model", tmp_path / "run", "--data", tmp_path / "data", "--json")
    assert (code, json.loads(out)["images"]) == (0, 2)
    assert "the images that the run held out are measured, if they are its data" in err


def test_what_images_are_filled_up_to(capsys, model, data, monkeypatch):
    seen = []

    def loader(source, *, divisor, **options):
        seen.append(divisor)
        raise ValueError("that is enough")

    monkeypatch.setattr("natjax_train.tasks.detection.box_eval_loader", loader)
    for options in ([], ["--size-divisor", "64"]):
        assert run(capsys, "--model", model, "--data", data, *options)[0] == 1
    assert seen == [None, 64]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "classification"], "--task classification measures a classifier, and this is none"),
        (["--multi-scale"], "--multi-scale is of no use here: .* is a detector"),
        (["--results", "missing/results.json"], "No such file or directory"),
        (["--data", "digits"], "digits: no such folder; give a folder that holds annotations/instances_val2017.json"),
        (["--model", demo.MODEL_DIR, "--results", "results.json"], "--results is of no use here: .* is a classifier"),
        (["--model", demo.MODEL_DIR, "--size-divisor", "32"], "--size-divisor is of no use here: .* is a classifier"),
    ],
)
def test_refusals(capsys, model, data, options, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "--model", model, "--data", data, *options)
    assert (code, out) == (1, "")
    assert re.search(message, err)


def test_classes_and_processors_that_do_not_fit(capsys, tmp_path, model, data):
    annotations = pathlib.Path("annotations") / "val.json"
    other = shutil.copytree(data, tmp_path / "data")
    text = (data / annotations).read_text()
    (other / annotations).write_text(text.replace('"ant"', '"dog"'))
    code, _, err = run(capsys, "--model", model, "--data", other)
    assert code == 1
    assert "The names of the data's 2 classes (cat; dog) are not among those of the model's 3 (ant; bee; cat)" in err
    (other / annotations).write_text(json.dumps([{"image_id": 1, "category_id": 1, "score": 1.0}]))
    code, _, err = run(capsys, "--model", model, "--data", other)
    assert code == 1
    assert "is a list of results, which have scores, and no annotations" in err
    cropping = shutil.copytree(model, tmp_path / "cropping")
    processor = dataclasses.replace(PROCESSOR, do_center_crop=True, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(cropping)
    code, _, err = run(capsys, "--model", cropping, "--data", data)
    assert code == 1
    assert "the image processor crops images" in err
