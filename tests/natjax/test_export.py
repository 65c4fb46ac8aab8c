"""Exported models: StableHLO and ONNX give what the model gives, run without natjax, and refuse what cannot be exported."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax import export

import natjax
from natjax.cli import main
from natjax.exporting import ExportedModel

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens/exported_nat"
DIGITS = sorted(pathlib.Path(natjax.__file__).parent.glob("demo/digits/digit_?.png"))
TINY = {"depths": (1, 1), "num_heads": (2, 4), "embed_dim": 8, "kernel_size": 3, "num_labels": 5, "mlp_ratio": 1.0}
ONLY_JAX = """
import pathlib, sys
import jax, numpy as np
from jax import export
program = export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
assert program.platforms == ("cpu", "cuda", "tpu")
np.save(sys.argv[3], program.call(np.load(sys.argv[2]))["logits"])
assert not {"natjax", "natjax_kernels", "flax"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The built-in classifier as StableHLO."""
    out = tmp_path_factory.mktemp("digits")
    natjax.export("digits", out, overwrite=True)
    return out


@pytest.fixture(scope="module")
def samples():
    """Three prepared digits and the classifier's logits."""
    model = natjax.NatForImageClassification.from_pretrained("digits")
    images = natjax.NatImageProcessor.from_pretrained("digits")(list(DIGITS[:3]))
    return images, logits_of(model, images)


def tiny(**changes):
    return natjax.NatForImageClassification(natjax.NatConfig(**(TINY | changes)), rngs=nnx.Rngs(3))


def logits_of(model, images):
    return np.asarray(jax.jit(lambda pixels: model(pixels).logits)(images))


def images_of(size, count=2):
    return np.random.default_rng(0).normal(size=(count, *size, 3)).astype(np.float32)


def test_stablehlo_runs_where_natjax_is_not_imported(digits, samples, tmp_path):
    images, logits = samples
    np.save(tmp_path / "images.npy", images)
    command = [
        sys.executable,
        "-c",
        ONLY_JAX,
        digits / "model.stablehlo",
        tmp_path / "images.npy",
        tmp_path / "out.npy",
    ]
    subprocess.run(command, check=True, env={"JAX_PLATFORMS": "cpu"})
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), logits, rtol=1e-5, atol=1e-5)


def test_what_an_earlier_jax_exported_still_runs():
    """Written by JAX 0.10.2, on Python 3.11."""
    program = export.deserialize(bytearray((GOLDEN / "model.stablehlo").read_bytes()))
    with np.load(GOLDEN / "expected.npz") as expected:
        logits = program.call(expected["images"])["logits"]
        np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5, atol=1e-5)


def test_pipeline_of_an_export_gives_what_the_checkpoint_gives(digits):
    expected = natjax.pipeline("image-classification", "digits")(DIGITS)
    for model in (digits, digits / "model.stablehlo"):
        for got, wanted in zip(natjax.pipeline("image-classification", model)(DIGITS), expected, strict=True):
            assert got[0]["label"] == wanted[0]["label"]
            assert got[0]["score"] == pytest.approx(wanted[0]["score"], abs=1e-5)


def test_a_fixed_batch_is_filled_and_split(tmp_path):
    model, images = tiny(), images_of((32, 40), 5)
    path = natjax.export(model, tmp_path / "out", batch=2, image_size=(32, 40), platforms=("cpu",))
    exported = ExportedModel.open(path)
    assert (exported.batch, exported.image_size) == (2, (32, 40))
    np.testing.assert_allclose(exported(images)["logits"], logits_of(model, images), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"takes images \(32, 40, 3\), got \(40, 32, 3\)"):
        exported(images.swapaxes(1, 2))


def test_uint8_images_are_rescaled_and_normalised_inside(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    processor = natjax.NatImageProcessor(size=32, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4))
    model = tiny()
    path = natjax.export(model, tmp_path / "out", processor=processor, input_dtype="uint8", platforms=("cpu",))
    exported = ExportedModel.open(path)
    assert exported.program.dtype == np.uint8
    expected = logits_of(model, processor(pixels))
    np.testing.assert_allclose(exported(pixels)["logits"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(exported(exported.processor(pixels))["logits"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"dilations": ((2,), (1,))}], ids=["nat", "dinat"])
def test_onnx_gives_the_logits(changes, tmp_path):
    pytest.importorskip("jax2onnx")
    model = tiny(**changes)
    path = natjax.export(model, tmp_path / "out", format="onnx", image_size=32)
    exported = ExportedModel.open(path)
    assert exported.batch is None
    for count in (1, 3):
        images = images_of((32, 32), count)
        np.testing.assert_allclose(exported(images)["logits"], logits_of(model, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("to", ["stablehlo", "onnx"])
def test_features_are_exported(to, tmp_path):
    if to == "onnx":
        pytest.importorskip("jax2onnx")
    tiny().save_pretrained(tmp_path / "model", processor=natjax.NatImageProcessor(size=32))
    task = "image-feature-extraction"
    natjax.export(tmp_path / "model", tmp_path / "out", format=to, task=task, platforms=("cpu",))
    expected, got = (natjax.pipeline(task, tmp_path / name)(DIGITS[3]) for name in ("model", "out"))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(natjax.CheckpointError, match=f"was exported for {task}; got image-classification"):
        natjax.pipeline("image-classification", tmp_path / "out")


@pytest.mark.parametrize("to", ["stablehlo", "onnx"])
def test_segmentation_is_exported(to, tmp_path):
    """Windows of the exported size slide over a larger image."""
    if to == "onnx":
        pytest.importorskip("jax2onnx")
    backbone = natjax.NatConfig(**(TINY | {"num_labels": 0}), out_features=("stage1", "stage2"))
    config = natjax.UperNetConfig(backbone_config=backbone, num_labels=4, hidden_size=16, use_auxiliary_head=False)
    model = natjax.UperNetForSemanticSegmentation(config, rngs=nnx.Rngs(0))
    processor = natjax.NatImageProcessor(size={"height": 64, "width": 96})
    model.save_pretrained(tmp_path / "model", processor=processor)
    natjax.export(tmp_path / "model", tmp_path / "out", format=to, image_size=64, platforms=("cpu",))
    task, image = "image-segmentation", np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    got = natjax.pipeline(task, tmp_path / "out").class_maps(image)
    expected = natjax.pipeline(task, tmp_path / "model", crop_size=64).class_maps(image)
    assert len(np.unique(expected)) > 1
    assert (got == expected).mean() > 0.999  # where two classes are as likely, rounding decides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": "any"}, "settled for one height and width"),
        ({"format": "tflite"}, "format must be 'stablehlo' or 'onnx'; got 'tflite'"),
        ({"platforms": ("gpu",)}, "platforms must be of cpu, cuda, rocm, tpu"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"format": "onnx", "dtype": "bfloat16"}, "ONNX is exported in float32"),
        ({"input_dtype": "int8"}, "input_dtype must be 'float32' or 'uint8'"),
        ({"task": "image-segmentation"}, "is of image-classification or image-feature-extraction"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        natjax.export("digits", tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept(digits):
    with pytest.raises(natjax.CheckpointError, match=r"exists\. Choose another folder"):
        natjax.export("digits", digits)


def test_settled_arguments_are_refused(digits):
    with pytest.raises(ValueError, match=r"dtype was settled when .* was exported; got 'bfloat16'"):
        natjax.pipeline("image-classification", digits, dtype="bfloat16")


@pytest.mark.parametrize("suffix", ["stablehlo", "onnx"])
def test_damaged_programs_are_refused(suffix, digits, tmp_path):
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((digits / name).read_bytes())
    (tmp_path / f"model.{suffix}").write_bytes(b"nothing of the kind")
    with pytest.raises(natjax.CheckpointError, match="cannot be loaded as an exported model"):
        natjax.pipeline("image-classification", tmp_path)


def test_command_line_exports_and_classifies(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", "digits", str(out), "--platforms", "cpu", "--batch", "any"]) == 0
    assert "image-classification: float32 [any, 64, 64, 1] -> logits" in capsys.readouterr().out
    assert main(["classify", str(DIGITS[3]), "--model", str(out), "--top-k", "1"]) == 0
    assert "  3  " in capsys.readouterr().out
    assert main(["export", "digits", str(tmp_path / "any"), "--image-size", "any"]) == 1
    assert "settled for one height and width" in capsys.readouterr().err
