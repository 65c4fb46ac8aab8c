"""The PyTorch oracle itself: against NATTEN 0.17.5's outputs and gradients, and against transformers run on NATTEN."""

import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

GOLDENS = pathlib.Path(__file__).parent / "goldens"
with np.load(GOLDENS / "natten_ops.npz") as _archive:
    ARRAYS = dict(_archive)
CASES = [
    case
    for case in json.loads(str(ARRAYS["meta"]))["cases"]
    if case["rank"] == 2 and len(set(case["kernel_size"])) == len(set(case["dilation"])) == 1
]


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    import natten_oracle

    return natten_oracle


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_natten(case, oracle):
    def array(name):  # heads first, as NATTEN has them
        return torch.tensor(ARRAYS[f"{case['case']}/{name}"]).movedim(3, 1)

    kernel_size, dilation = case["kernel_size"][0], case["dilation"][0]
    query, key, value = (array(name).requires_grad_() for name in ("query", "key", "value"))
    if case["rpb"]:
        rpb = torch.tensor(ARRAYS[f"{case['case']}/rpb"])
    else:
        rpb = torch.zeros(case["heads"], 2 * kernel_size - 1, 2 * kernel_size - 1, dtype=torch.float64)
    rpb.requires_grad_()
    logits = oracle.natten2dqkrpb(query * case["head_dim"] ** -0.5, key, rpb, kernel_size, dilation)
    out = oracle.natten2dav(logits.softmax(-1), value, kernel_size, dilation)
    out.backward(array("dout"))
    torch.testing.assert_close(out, array("out"), rtol=0, atol=1e-12)
    for name, tensor in (("dquery", query), ("dkey", key), ("dvalue", value)):
        torch.testing.assert_close(tensor.grad, array(name), rtol=0, atol=1e-12)
    if case["rpb"]:
        torch.testing.assert_close(rpb.grad, torch.tensor(ARRAYS[f"{case['case']}/drpb"]), rtol=0, atol=1e-12)


def test_an_axis_may_be_too_short(oracle):
    x = torch.zeros(1, 1, 5, 9, 2)
    with pytest.raises(ValueError, match="5 is too short for kernel size 3, dilation 2"):
        oracle.natten2dqkrpb(x, x, torch.zeros(1, 5, 5), 3, 2)


@pytest.mark.parametrize("name", ["hf_nat", "hf_nat_layer_scale", "hf_dinat"])
@pytest.mark.filterwarnings("ignore")  # of another era's torch and Python
def test_transformers(name, oracle):
    pytest.importorskip("transformers")
    oracle.install()
    import transformers

    model_class = (
        transformers.DinatForImageClassification if "dinat" in name else transformers.NatForImageClassification
    )
    model = model_class.from_pretrained(GOLDENS / name).eval()
    with np.load(GOLDENS / name / "expected.npz") as expected:
        labels = torch.tensor(expected["labels"])
        outputs = model(torch.tensor(expected["pixel_values"]), labels=labels, output_attentions=True)
        np.testing.assert_allclose(outputs.logits.detach(), expected["logits"], atol=1e-5)
        np.testing.assert_allclose(outputs.attentions[0].detach(), expected["attentions.0"], atol=1e-5)
        outputs.loss.backward()
        for key, parameter in model.named_parameters():
            np.testing.assert_allclose(parameter.grad, expected[f"grad/{key}"], atol=2e-5, err_msg=key)
