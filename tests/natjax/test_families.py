"""DiNAT_s, isotropic models and ViT-rpb: what sets them apart from NAT and DiNAT."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import natjax
import natjax_convert
from natjax.cli import main
from natjax.configuration import DinatSConfig, NatIsotropicConfig, VitRpbConfig, config_from_dict
from natjax.processors import default_processor
from natjax_convert.torch_zip import write_torch

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
VITRPB = GOLDENS / "shilabs_vitrpb" / "checkpoint.pth"
SMALL = {"embed_dim": 8, "kernel_size": 3, "num_labels": 3}
CONFIGS = {
    "dinat_s": DinatSConfig(**SMALL, depths=(1, 1), num_heads=(1, 2), dilations=((2,), (1,)), out_indices=(1, 2)),
    "nat_isotropic": NatIsotropicConfig(**SMALL, depths=(1,), num_heads=(2,), patch_size=6),
    "dinat_isotropic": NatIsotropicConfig(**SMALL, depths=(2,), num_heads=(2,), dilations=((1, 2),)),
    "vitrpb": VitRpbConfig(embed_dim=8, num_labels=3, depths=(1,), num_heads=(2,), patch_size=6, image_size=24),
}


def images(config, *size):
    side = getattr(config, "image_size", 24)
    return np.random.default_rng(0).normal(size=(2, *(size or (side, side)), 3)).astype("float32")


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name):
    config = CONFIGS[name]
    assert config.model_type == name
    read = config_from_dict(config.to_dict())
    assert (read, type(read), hash(read)) == (config, type(config), hash(config))
    changed = config.replace(num_labels=7)
    assert (type(changed), changed.num_labels, changed.kernel_size) == (type(config), 7, config.kernel_size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DinatSConfig(patch_size=8), "patch_size must be 4.*got 8"),
        (lambda: DinatSConfig(kernel_size=4), "kernel_size must be odd"),
        (lambda: config_from_dict({"model_type": "dinat_s"}), "A 'dinat_s' configuration needs dilations"),
        (
            lambda: config_from_dict({"model_type": "dinat_isotropic"}),
            "'dinat_isotropic' configuration needs dilations",
        ),
        (lambda: NatIsotropicConfig(depths=(1, 1), num_heads=(1, 1)), "one level, as the model is isotropic"),
        (lambda: NatIsotropicConfig(patch_size=0), "patch_size must be an integer of at least 1; got 0"),
        (lambda: NatIsotropicConfig(kernel_size=14), "kernel_size must be odd"),
        (lambda: VitRpbConfig(image_size=230), "image_size must be a multiple of patch_size, 16; got 230"),
        (lambda: VitRpbConfig(kernel_size=7), "kernel_size must be image_size // patch_size = 14.*got 7"),
        (lambda: VitRpbConfig(dilations=((1,) * 12,)), "dilations must be None"),
    ],
)
def test_impossible_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("model_class", [natjax.NatForImageClassification, natjax.NatBackbone])
def test_saving_and_loading(name, model_class, tmp_path):
    model = model_class(CONFIGS[name], rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    family = {
        "dinat_s": "DinatS",
        "nat_isotropic": "NatIsotropic",
        "dinat_isotropic": "DinatIsotropic",
        "vitrpb": "Vitrpb",
    }
    assert written["model_type"] == name
    assert written["architectures"] == [model_class.__name__.replace("Nat", family[name])]
    again = model_class.from_pretrained(tmp_path)
    assert again.config.replace(extra={}) == model.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))


@pytest.mark.parametrize("name", ["dinat_s", "nat_isotropic"])
def test_images_are_padded_to_a_multiple_of_the_patch(name):
    """With zeros at the bottom and right: 23 x 28 pixels are 6 x 7 patches of 4, or 4 x 5 of 6."""
    model, patch = natjax.NatModel(CONFIGS[name], rngs=nnx.Rngs(0)), CONFIGS[name].patch_size
    small = images(CONFIGS[name], 23, 28)
    padded = np.pad(small, ((0, 0), (0, -23 % patch), (0, -28 % patch), (0, 0)))
    first, second = model(small).last_hidden_state, model(padded).last_hidden_state
    np.testing.assert_array_equal(first, second)
    assert model(small, output_hidden_states=True).hidden_states[0].shape[1:3] == (-(-23 // patch), -(-28 // patch))


def test_maps_of_a_backbone():
    config = CONFIGS["dinat_s"]
    out = natjax.NatBackbone(config, rngs=nnx.Rngs(0))(images(config, 26, 33))
    assert [feature_map.shape[1:] for feature_map in out.feature_maps] == [(7, 9, 8), (4, 5, 16)]


def test_a_vit_takes_one_size_of_images(capsys):
    config = CONFIGS["vitrpb"]
    model = natjax.NatForImageClassification(config, rngs=nnx.Rngs(0))
    assert model(images(config)).logits.shape == (2, 3)
    assert model(images(config, 23, 20)).logits.shape == (2, 3)  # padded to the same 4 x 4 patches, as by its authors
    with pytest.raises(ValueError, match=r"takes images of 24 x 24 pixels.* got 30 x 24\. Resize.*image_size=N"):
        model(images(config, 30, 24))
    with pytest.raises(ValueError, match=r"takes no pixel_mask.*resize them to 24 x 24"):
        model(images(config), pixel_mask=np.ones((2, 24, 24), bool))
    assert main(["info", "vitrpb_small", "--image-size", "384"]) == 1
    assert "takes images of 224 x 224 pixels" in capsys.readouterr().err
    assert default_processor(config).crop_size == {"height": 24, "width": 24}


def test_a_vit_of_another_image_size(tmp_path):
    """Its biases are interpolated as torch does it, and the file of the new size loads without doing so."""
    torch = pytest.importorskip("torch", reason="PyTorch parity is checked on Python 3.11")
    config = natjax_convert.infer_config(natjax_convert.read_state_dict(VITRPB))
    assert (config.image_size, config.kernel_size) == (48, 6)
    with pytest.raises(natjax.CheckpointError, match="resize_biases=True interpolates"):
        natjax.NatForImageClassification.from_pretrained(VITRPB, image_size=64)
    model = natjax.NatForImageClassification.from_pretrained(VITRPB, image_size=64, resize_biases=True)
    original = torch.load(VITRPB, weights_only=True)["model"]["layers.1.attn.rpb"]
    expected = torch.nn.functional.interpolate(original[None].double(), (15, 15), mode="bicubic", align_corners=False)[
        0
    ]
    found = model.nat.encoder.levels[0].layers[1].attention.rpb[...]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert model(images(model.config)).logits.shape == (2, 5)
    model.save_pretrained(tmp_path / "64")
    natjax_convert.convert(tmp_path / "64", tmp_path / "64.pth")
    written = torch.load(tmp_path / "64.pth", weights_only=True)["layers.0.attn.relative_position_index"]
    assert written.shape == (64, 64)
    assert (written[0, 0], written[0, 63], written[63, 0]) == (7 * 15 + 7, 14 * 15 + 14, 0)  # key - query
    again = natjax.NatForImageClassification.from_pretrained(tmp_path / "64.pth")
    np.testing.assert_array_equal(again.nat.encoder.levels[0].layers[1].attention.rpb[...], found)


def test_the_index_of_a_vit_is_checked(tmp_path):
    def convert(change):
        tensors = {name: np.asarray(tensor) for name, tensor in natjax_convert.read_state_dict(VITRPB).items()}
        change(tensors)
        write_torch(tmp_path / "x.pth", tensors)
        natjax_convert.convert(tmp_path / "x.pth", tmp_path / "out")

    name = "layers.1.attn.relative_position_index"
    with pytest.raises(natjax.CheckpointError, match=f"{name}: its values do not follow from the model's shapes"):
        convert(lambda tensors: tensors.update({name: tensors[name][::-1].copy()}))
    with pytest.raises(natjax.CheckpointError, match=f"{name}: missing"):
        convert(lambda tensors: tensors.pop(name))
    assert not (tmp_path / "out").exists()


def test_a_small_file_cannot_ask_for_a_large_index(tmp_path):
    """Of repeated values, for a map of 1000 x 1000 patches: 8 TB."""
    torch = pytest.importorskip("torch")
    tensors = torch.load(VITRPB, weights_only=True)["model"]
    for i in range(2):
        tensors[f"layers.{i}.attn.rpb"] = torch.zeros(1).expand(3, 1999, 1999)
        tensors[f"layers.{i}.attn.relative_position_index"] = torch.zeros(1, dtype=int).expand(10**6, 10**6)
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(natjax.CheckpointError, match="larger than the whole file"):
        natjax_convert.convert(tmp_path / "x.pth", tmp_path / "out")


@pytest.mark.parametrize(("name", "untold"), [("dinat_s", "its dilations"), ("nat_isotropic", "NAT from DiNAT")])
def test_dilations_are_asked_for(name, untold, tmp_path):
    path = GOLDENS / f"shilabs_{name}" / "checkpoint.pth"
    with pytest.raises(natjax.CheckpointError, match=f"do not tell {untold}.*--dilations"):
        natjax_convert.convert(path, tmp_path / "out")
    with pytest.raises(natjax.CheckpointError, match=f"weights are those of a '{name}'.* is of a 'nat' one"):
        natjax_convert.convert(path, tmp_path / "out", config=natjax.get_config("nat_mini"))


def test_weights_that_are_not_on_the_hub():
    with pytest.raises(natjax.CheckpointError) as caught:
        natjax.create_model("dinat_s_tiny", pretrained=True)
    said = str(caught.value)
    assert "dinat_s_tiny: its weights are not on the Hugging Face Hub. Download https://shi-labs.com" in said
    assert "natjax convert dinat_s_tiny_in1k_224.pth" in said


def test_classes_of_imagenet_22k():
    config = natjax.get_config("dinat_s_large_22k")
    assert (config.num_labels, config.id2label[0]) == (
        21841,
        natjax.get_config("dinat_large", num_labels=21841).id2label[0],
    )
    assert natjax.get_config("dinat_s_large").id2label[0] == natjax.get_config("nat_mini").id2label[0]
    assert natjax.get_config("dinat_s_large_22k", num_labels=2).id2label[0] == "LABEL_0"
