"""transformers 4.40.2's own NAT at full size, with random weights, beside natjax with the same weights converted."""

import pathlib
import sys

import numpy as np
import pytest
from flax import nnx

import natjax

torch = pytest.importorskip("torch", reason="PyTorch parity is checked on Python 3.11")
pytest.importorskip("transformers")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))


@pytest.mark.filterwarnings("ignore")  # transformers 4.40.2's own
def test_nat_mini_at_full_size(tmp_path):
    import natten_oracle

    natten_oracle.install()
    from transformers import NatConfig, NatForImageClassification

    torch.manual_seed(0)
    config = NatConfig(drop_path_rate=0.2, num_labels=1000, initializer_range=0.05)
    theirs = NatForImageClassification(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("rpb", "bias")):  # they start as zeros, which would hide mistakes
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = natjax.NatForImageClassification.from_pretrained(tmp_path)

    images = np.random.default_rng(0).standard_normal((1, 224, 224, 3), np.float32)
    with torch.no_grad():
        desired = theirs(torch.tensor(images.transpose(0, 3, 1, 2)), output_hidden_states=True)
    actual = nnx.jit(lambda model, x: model(x, output_hidden_states=True))(ours, images)
    np.testing.assert_allclose(actual.logits, desired.logits.numpy(), rtol=0, atol=2e-5)
    for mine, other in zip(actual.hidden_states, desired.hidden_states, strict=True):
        scale = other.abs().max().item()
        np.testing.assert_allclose(np.asarray(mine) / scale, other.numpy() / scale, rtol=0, atol=2e-5)
