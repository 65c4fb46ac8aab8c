"""`natjax bench`: figures that fit together, and one clear line for what goes wrong. No time is asserted."""

import json

import jax
import pytest

from natjax import benchmarking
from natjax.cli import main
from natjax.configuration import MaskRcnnConfig, NatConfig, UperNetConfig
from natjax.flops import count_flops

pytestmark = pytest.mark.once

TINY = NatConfig(depths=(1,), num_heads=(1,), embed_dim=8, kernel_size=3, num_labels=10, mlp_ratio=1.0)
FAST = ["--image-size", "32", "--seconds", "0.05"]


@pytest.fixture(autouse=True)
def strict_promotion():
    """Not here: Optax promotes in its AdamW."""
    return


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(TINY.to_json())
    return str(tmp_path)


def test_table(folder, capsys):
    assert main(["bench", folder, *FAST]) == 0
    out, err = capsys.readouterr()
    assert "1 image of 32 x 32 pixels, float32, on cpu" in out
    head, inference = out.split("\n\n")[1].splitlines()
    assert head.split()[:4] == ["compile", "s", "p50", "ms"]
    assert inference.split()[0] == "inference"
    assert len(inference.split()) == 7
    assert err == ""


def test_a_segmenter(tmp_path, capsys):
    trunk = NatConfig(depths=(1,) * 3, num_heads=(1,) * 3, embed_dim=8, kernel_size=3)
    config = UperNetConfig(backbone_config=trunk, hidden_size=8, auxiliary_channels=8, num_labels=5)
    (tmp_path / "config.json").write_text(config.to_json())
    assert main(["bench", str(tmp_path), *FAST, "--batch-size", "2", "--train", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["measured"]) == ["inference", "training step"]


def test_a_detector(tmp_path, capsys):
    trunk = NatConfig(depths=(1,), num_heads=(1,), embed_dim=8, kernel_size=3)
    config = MaskRcnnConfig(backbone_config=trunk, fpn_channels=8, box_fc_channels=8, mask_channels=8, num_labels=5)
    (tmp_path / "config.json").write_text(config.to_json())
    assert main(["bench", str(tmp_path), *FAST, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["measured"]) == ["inference"]
    assert benchmarking.inference(config, 1, 32).run().valid.any()  # the mask heads have work
    with pytest.raises(ValueError, match="whose side is a multiple of 8; got 36"):
        benchmarking.training(config, 1, 36)
    program = benchmarking.training(config, 1, 32)
    first, *_, last = (program.run() for _ in range(10))
    assert last < first


def test_json(folder, capsys):
    assert main(["bench", folder, *FAST, "--batch-size", "2", "--dtype", "bfloat16", "--train", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["image_size"], document["batch_size"], document["dtype"]) == (32, 2, "bfloat16")
    assert document["device"] == jax.devices()[0].device_kind
    assert list(document["measured"]) == ["inference", "training step"]
    for row, passes in zip(document["measured"].values(), (1, 3), strict=True):
        assert 0 < row["p50_milliseconds"] <= row["p95_milliseconds"]
        assert row["images_per_second"] == pytest.approx(2e3 / row["p50_milliseconds"], rel=0.02)
        flops = 2 * passes * count_flops(TINY, (32, 32))
        assert row["gflops_per_second"] == pytest.approx(flops / row["p50_milliseconds"] / 1e6, rel=0.02, abs=0.06)
        assert row["compile_seconds"] > 0
        assert row["memory_megabytes"] > 0


def test_progress_is_shown_on_terminals_only(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["bench", folder, *FAST, "--json"]) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert " runs, " in err
    assert err.endswith("\r")


def test_training_lowers_the_loss():
    step = benchmarking.training(TINY.replace(drop_path_rate=0.0), 2, 32)
    losses = [float(step.run()) for _ in range(5)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required: NAME|DIR"),
        ("x --image-size 0", "must be 1 to 65536 pixels; got '0'"),
        ("x --batch-size none", "must be an integer of at least 1; got 'none'"),
        ("x --dtype int8", "invalid choice: 'int8'"),
        *((f"x --seconds {text}", f"must be seconds above 0; got '{text}'") for text in ("0", "nan", "inf", "long")),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments.split()])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_measured_is_said_before_the_work(tmp_path, capsys, monkeypatch):
    assert main(["bench", "nat_minni"]) == 1
    assert "Did you mean nat_mini?" in capsys.readouterr().err
    monkeypatch.setattr(benchmarking, "inference", lambda *_: pytest.fail("this is work"))
    (tmp_path / "config.json").write_text(TINY.replace(num_labels=0).to_json())
    assert main(["bench", str(tmp_path), *FAST, "--train"]) == 1
    assert "no classes to train on" in capsys.readouterr().err


def test_out_of_memory_on_a_cpu(folder, capsys):
    assert main(["bench", folder, *FAST, "--batch-size", "100000000000"]) == 1  # more than addresses reach
    assert "give a smaller --batch-size" in capsys.readouterr().err


def test_out_of_memory_on_a_gpu(folder, capsys, monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Failed to allocate request for 1.0GiB on device ordinal 0"
        )

    monkeypatch.setattr(benchmarking, "inference", exhausted)
    assert main(["bench", folder, *FAST]) == 1
    assert "give a smaller --batch-size" in capsys.readouterr().err
