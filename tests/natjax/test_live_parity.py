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


@pytest.mark.filterwarnings("ignore")  # transformers 4.40.2's own
@pytest.mark.parametrize("dilations", [None, ((1,), (2,), (1, 2), (1,))], ids=["nat", "dinat"])
def test_transformers_segments_with_what_natjax_saves(tmp_path, dilations):
    import natten_oracle

    natten_oracle.install()
    from transformers import UperNetForSemanticSegmentation

    backbone = natjax.NatConfig(
        embed_dim=4, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 4), kernel_size=3, dilations=dilations, mlp_ratio=2.0
    )
    config = natjax.UperNetConfig(backbone_config=backbone, hidden_size=8, auxiliary_channels=6, num_labels=5)
    ours = natjax.UperNetForSemanticSegmentation(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = nnx.state(ours, (nnx.Param, nnx.BatchStat))
    for path, variable in nnx.to_flat_state(state):  # away from zeros and ones, which would hide mistakes
        if path[-1] == "num_batches_tracked":
            variable[...] += 7
        else:
            low, high = (0.5, 1.5) if path[-1] in ("scale", "var") else (-0.3, 0.3)
            variable[...] = rng.uniform(low, high, variable.shape).astype(np.float32)
    nnx.update(ours, state)
    ours.save_pretrained(tmp_path)
    theirs, report = UperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.decode_head.bottleneck.batch_norm.num_batches_tracked == 7

    images = rng.standard_normal((1, 37, 50, 3)).astype(np.float32)
    with torch.no_grad():
        desired = theirs.eval()(torch.tensor(images.transpose(0, 3, 1, 2))).logits.numpy().transpose(0, 2, 3, 1)
    actual = nnx.jit(lambda model, x: model(x).logits)(ours, images)
    np.testing.assert_allclose(actual, desired, rtol=0, atol=2e-5 * np.abs(desired).max())
