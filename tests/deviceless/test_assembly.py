"""jaxlib takes the ptxas that natjax says it takes."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda13_plugin"), reason="JAX's CUDA plugin is not here: make test-deviceless"
)
SCRIPT = pathlib.Path(__file__).with_name("assembly.py")


def install(folder, version):
    """Makes a ptxas that says its version, and notes when it is to assemble something."""
    folder.mkdir(parents=True)
    script = folder / "ptxas"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "V{version}" || echo "$0" >> "$ASSEMBLED"\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("first", ["here", "path", "home"])
def test_jaxlib_takes_the_ptxas_that_natjax_finds(tmp_path, first):
    scripts = {
        "here": install(tmp_path / ("work" if first == "here" else "elsewhere") / "bin", "12.8.1"),
        "path": install(tmp_path / "path", "12.8.1"),
        "home": install(tmp_path / "home" / "bin", "12.9.1"),
    }
    old = install(tmp_path / "old", "11.7.1").parent  # which jaxlib leaves out
    path = [str(old), *([str(tmp_path / "path")] if first != "home" else [])]
    variables = {"PATH": ":".join(path), "CUDA_HOME": str(tmp_path / "home"), "ASSEMBLED": str(tmp_path / "assembled")}
    (tmp_path / "work").mkdir(exist_ok=True)
    ran = subprocess.run(
        [sys.executable, SCRIPT],
        env=os.environ | variables | {"JAX_PLATFORMS": "cpu"},
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        check=True,
    )
    expected = str(scripts[first])
    assert ran.stdout.strip() == expected
    assert os.path.realpath(tmp_path / "work" / (tmp_path / "assembled").read_text().strip()) == expected
