"""`natjax push` with a stand-in for huggingface_hub: what would be uploaded, and one clear line for what goes wrong."""

import fnmatch
import pathlib
import shutil
import sys
import types

import pytest

from natjax import errors
from natjax.cli import main
from natjax.hub import is_hub_id

pytestmark = pytest.mark.once

NAT = pathlib.Path(__file__).parents[1] / "goldens" / "hf_nat"
ADDRESS = "https://huggingface.co/jane/flowers"


class Hub(types.ModuleType):
    """Keeps what is uploaded."""

    def __init__(self):
        super().__init__("huggingface_hub")
        self.token, self.public, self.error, self.uploaded = "hf_x", False, None, {}

    def get_token(self):
        return self.token

    def HfApi(self):
        return self

    def create_repo(self, hub_id, *, private, exist_ok):
        assert exist_ok
        self.private = private and not self.public
        return ADDRESS

    def repo_info(self, hub_id):
        return types.SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        if self.error:
            raise self.error
        files = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*")]
        self.uploaded[repo_id] = {file for file in files if any(fnmatch.fnmatch(file, p) for p in allow_patterns)}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub := Hub())
    shutil.copytree(NAT, "run/model", ignore=lambda *_: ["pytorch_model.bin"])
    for name in ("run/recipe.json", "run/model/preprocessor_config.json", "run/model/notes.txt"):
        pathlib.Path(name).write_text("{}")
    return hub


@pytest.mark.parametrize("folder", ["run", "run/model"])
def test_push(hub, folder, capsys):
    assert main(["push", folder, "jane/flowers"]) == 0
    out, err = capsys.readouterr()
    assert out == ADDRESS + "\n"
    assert f"{folder} has no README.md: write a model card" in err
    files = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert hub.uploaded == {"jane/flowers": files}
    assert not hub.private
    pathlib.Path("run/model/README.md").write_text("# Flowers")
    assert main(["push", folder, "jane/flowers", "--private"]) == 0
    assert capsys.readouterr().err == ""
    assert hub.uploaded == {"jane/flowers": files | {"README.md"}}
    assert hub.private


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        ("run flowers", {}, "flowers: an id of the Hugging Face Hub is owner/name"),
        ("run jane/", {}, "jane/: an id of the Hugging Face Hub is owner/name"),
        ("nowhere jane/flowers", {}, "nowhere: no such folder"),
        ("run/recipe.json jane/flowers", {}, "run/recipe.json: no such folder"),
        ("empty jane/flowers", {}, "empty: no model in Hugging Face's format"),
        (
            "run jane/flowers",
            {"token": None},
            "Nobody is logged in at the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN",
        ),
        (
            "run jane/flowers",
            {"error": ConnectionError("offline")},
            "jane/flowers: cannot be pushed to the Hugging Face Hub: offline",
        ),
        ("run jane/flowers --private", {"public": True}, "jane/flowers: exists and is public; leave --private out"),
    ],
)
def test_what_cannot_be_pushed(hub, arguments, change, message, capsys):
    vars(hub).update(change)
    pathlib.Path("empty").mkdir()
    assert main(["push", *arguments.split()]) == 1
    assert capsys.readouterr().err.startswith(f"natjax: error: {message}")
    assert not hub.uploaded


def test_without_the_hub(hub, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", "run", "jane/flowers"]) == 1
    assert errors.install_line("hub") in capsys.readouterr().err


def test_what_is_an_id():
    names = ("jane/flowers", "shi-labs/nat-mini-in1k-224", "_a/b.c")
    assert all(map(is_hub_id, names))
    others = ("flowers", "a/b/c", "./flowers", "/flowers", "~/flowers", "runs/", "my runs/one", "a/..", "a/b\n")
    assert not any(map(is_hub_id, others))
