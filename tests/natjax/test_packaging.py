"""What is importable after an installation, and what an import costs."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from natjax import errors

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = {
    "natjax": "natjax",
    "natjax_kernels": "kernels/natjax_kernels",
    "natjax_convert": "convert/natjax_convert",
    "natjax_train": "train/natjax_train",
}


def run(code, folder):
    """Returns what code prints in a fresh interpreter that starts in `folder`."""
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.mark.parametrize(("name", "folder"), PACKAGES.items())
def test_packages_are_importable_from_anywhere(name, folder, tmp_path):
    code = f"import {name}; print({name}.__file__)"
    installed = pathlib.Path(run(code, tmp_path))
    assert installed.read_bytes() == (ROOT / folder / "__init__.py").read_bytes()
    assert pathlib.Path(run(code, ROOT)).samefile(installed) or name == "natjax"  # the root holds natjax itself


@pytest.mark.parametrize("name", ["kernels", "train", "convert", "tests"])
def test_folders_shadow_no_package_of_their_name(name, tmp_path):
    """An editable installation has the root on its path; a folder without `__init__.py` yields to any real package."""
    assert not (ROOT / name / "__init__.py").exists()
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    found = run(
        f"import sys; sys.path.append({str(tmp_path)!r}); import {name}; print({name}.__file__)", tmp_path.parent
    )
    assert pathlib.Path(found) == tmp_path / name / "__init__.py"


def test_import_is_light(tmp_path):
    heavy = "{'jax', 'flax', 'numpy', 'PIL', 'torch', 'safetensors'}"
    assert run(f"import natjax, sys; print({heavy} & set(sys.modules))", tmp_path) == "set()"


def test_every_public_name_loads_and_is_listed():
    import natjax

    for name in natjax.__all__:
        assert getattr(natjax, name) is not None
        assert name in dir(natjax)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        natjax.nothing  # noqa: B018


def test_version_is_that_of_the_distribution():
    import natjax

    assert importlib.metadata.version("natjax") == natjax.__version__


def test_no_command_installs_natjax_from_an_index():
    """It is on no package index: a command that says otherwise is a dead end."""
    stands = [
        str(path.relative_to(ROOT))
        for folder in PACKAGES.values()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md")
        if re.search(r"pip install ['\"]?natjax", path.read_text(encoding="utf-8"))
    ]
    assert stands == []


def test_install_lines_name_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in ("train", "hub", "gpu"):
        assert extra in project["optional-dependencies"]
        assert f"pip install '.[{extra}]'" in errors.install_line(extra)


def test_the_kernels_name_the_packages_of_the_gpu_extra():
    from natjax_kernels.triton import support

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = [package for package in project["optional-dependencies"]["gpu"] if not package.startswith("jax[")]
    assert "pip install " + " ".join(f"'{package}'" for package in packages) == support._INSTALL
