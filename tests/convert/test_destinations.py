"""What a conversion writes: names and formats, what exists already, a full disk, the image processor."""

import errno
import shutil

import numpy as np
import pytest
from golden_checkpoints import GOLDENS, assert_same, read, write

import natjax
import natjax_convert
from natjax_convert.dialect import Entry


def test_existing_destinations(tmp_path):
    (tmp_path / "out").mkdir()
    natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "out")  # an empty directory is as good as none
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(natjax.CheckpointError, match="exists"):
        natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "out")
    natjax_convert.convert(GOLDENS / "hf_dinat", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert_same(read(tmp_path / "out"), read(GOLDENS / "hf_dinat"))
    natjax_convert.convert(tmp_path / "out", tmp_path / "out", overwrite=True)  # onto itself
    assert_same(read(tmp_path / "out"), read(GOLDENS / "hf_dinat"))
    for to, dst in (("shilabs", tmp_path / "out"), ("hf", tmp_path / "out" / "notes.txt")):
        with pytest.raises(natjax.CheckpointError, match="expected a"):
            natjax_convert.convert(GOLDENS / "hf_nat", dst, to=to, overwrite=True)
    with pytest.raises(natjax.CheckpointError, match="'hf' or 'shilabs'"):
        natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "x", to="tf")
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("to", ["hf", "shilabs"])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, to, existing):
    destination = tmp_path / ("out" if to == "hf" else "out.pth")
    if existing:
        natjax_convert.convert(GOLDENS / "hf_nat", destination, to=to)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    split, written = Entry.split, []

    def write_until_full(*args):
        written.append(args)
        if len(written) == 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return split(*args)

    monkeypatch.setattr(Entry, "split", write_until_full)
    with pytest.raises(natjax.CheckpointError, match=r"No space left on device\. It was left as it was"):
        natjax_convert.convert(GOLDENS / "hf_nat", destination, to=to, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == ([destination] if existing else [])


def test_the_name_of_the_destination_says_what_is_written(tmp_path):
    assert natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "x.pth").to == "shilabs"
    assert (tmp_path / "x.pth").is_file()
    assert natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "nat.v1").to == "hf"
    assert (tmp_path / "nat.v1").is_dir()
    assert natjax_convert.convert(GOLDENS / "hf_nat", f"{tmp_path}/d1.pth/").to == "hf"
    assert (tmp_path / "d1.pth").is_dir()
    natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "X.PT")
    assert_same(read(tmp_path / "x.pth"), read(tmp_path / "X.PT"))


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("out.pth", "hf", r"out\.pth: the name of a file, and the format 'hf' is a folder"),
        ("out", "shilabs", r"'shilabs' is one file; give a name such as out\.pth"),
        ("nat.safetensors", None, r"no such file by itself.* or a file of the original format: nat\.pth"),
        ("nat.onnx", "hf", "no such file by itself"),
        ("x.tar.gz", None, r"no such file by itself.* x\.pth"),
        (".pth", None, r"an ending without a name; give a file such as nat\.pth"),
        (".safetensors", "shilabs", "an ending without a name"),
        ("d1.pth/", "shilabs", r"d1\.pth/: a folder, and the format 'shilabs' is one file"),
    ],
)
def test_names_that_contradict_the_format(tmp_path, name, to, message):
    with pytest.raises(natjax.CheckpointError, match=message):
        natjax_convert.convert(GOLDENS / "hf_nat", f"{tmp_path}/{name}", to=to)
    assert not list(tmp_path.iterdir())


def test_a_given_processor_is_written(tmp_path):
    processor = natjax.NatImageProcessor(size=96)
    shutil.copy(GOLDENS / "hf_nat" / "model.safetensors", tmp_path / "x.safetensors")
    report = natjax_convert.convert(tmp_path / "x.safetensors", tmp_path / "out", processor=processor)
    assert report.processor == "given"
    assert natjax.NatImageProcessor.from_pretrained(tmp_path / "out") == processor


def test_without_a_processor_the_default_one_is_written(tmp_path):
    """As the preset of the same architecture is published with; none for channels that no image has."""
    tensors = read(GOLDENS / "hf_nat")
    weights = write(tmp_path / "x" / "model.safetensors", tensors)
    assert natjax_convert.convert(weights, tmp_path / "x.pth", dilations="none").processor == "none"
    assert natjax_convert.convert(weights, tmp_path / "out", dilations="none").processor == "default"
    assert natjax.NatImageProcessor.from_pretrained(tmp_path / "out") == natjax.NatImageProcessor.imagenet()
    (kernel,) = (name for name, tensor in tensors.items() if tensor.ndim == 4 and tensor.shape[1] == 3)
    tensors[kernel] = np.concatenate([tensors[kernel], tensors[kernel][:, :1]], axis=1)
    weights = write(tmp_path / "four" / "model.safetensors", tensors)
    config = natjax.NatConfig.from_json_file(GOLDENS / "hf_nat" / "config.json").replace(num_channels=4)
    assert natjax_convert.convert(weights, tmp_path / "four out", config=config).processor == "none"
    assert not (tmp_path / "four out" / "preprocessor_config.json").exists()
    natjax.NatModel.from_pretrained(tmp_path / "four out")
    with pytest.raises(natjax.CheckpointError, match="images have 1 or 3 channels, and the model takes 4"):
        natjax.pipeline("image-classification", tmp_path / "four out")


def test_processor_travels_along(tmp_path):
    shutil.copytree(GOLDENS / "hf_nat", tmp_path / "in")
    (tmp_path / "in" / "preprocessor_config.json").write_text('{"mine": 1}')
    natjax_convert.convert(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"mine": 1}'
    (tmp_path / "in" / "preprocessor_config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(natjax.CheckpointError, match=r"preprocessor_config\.json: cannot be read"):
        natjax_convert.convert(tmp_path / "in", tmp_path / "other")
