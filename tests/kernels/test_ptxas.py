"""The ptxas that jaxlib takes, by fake folders: which is found, and what is said where there is none or an old one."""

import os
import sys
import types

import pytest

from natjax_kernels.triton import ptxas, support

pytestmark = [pytest.mark.once, pytest.mark.skipif(sys.platform != "linux", reason="CUDA's plugin is for Linux")]

STUB = b"\0XLA was built without libnvptxcompiler support.\0"


def install(folder, version, name="ptxas"):
    """Makes a ptxas that does nothing but say its version."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / name
    cuda = ".".join(version.split(".")[:2])
    script.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {cuda}, V{version}"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installs JAX's plugin for CUDA 13, and nothing with a ptxas; returns the folder of packages."""
    for variable in ("PATH", "CUDA_HOME", "TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path.startswith((str(tmp_path), "bin/")) and exists(path))
    site = tmp_path / "env" / "lib" / "python3" / "site-packages"
    load_plugin(monkeypatch, site, "jax_cuda13_plugin")
    return site


def load_plugin(monkeypatch, site, name, content=STUB):
    for other in ptxas._PLUGINS:
        monkeypatch.delitem(sys.modules, f"{other}._triton", raising=False)
    library = site / name / f"_triton{len(content)}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    library.write_bytes(content)
    monkeypatch.setitem(sys.modules, f"{name}._triton", types.SimpleNamespace(__file__=str(library)))


def found():
    return ptxas.find(ptxas.plugin())


def test_path_comes_before_cuda_home_and_that_before_the_package(site, monkeypatch, tmp_path):
    assert found() is None
    conda = install(tmp_path / "env" / "bin", "13.0.1")
    assert found() == ptxas.Ptxas(conda, (13, 0, 1))
    package = install(site / "nvidia" / "cu13" / "bin", "13.0.88")
    assert found() == ptxas.Ptxas(package, (13, 0, 88))
    home = install(tmp_path / "home" / "bin", "12.9.86")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert found().path == home
    module = install(tmp_path / "module", "12.8.93")
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path / 'module'}")
    assert found().path == module


def test_the_package_for_cuda_12_is_looked_for_elsewhere(site, monkeypatch):
    install(site / "nvidia" / "cu13" / "bin", "13.0.88")
    load_plugin(monkeypatch, site, "jax_cuda12_plugin")
    assert found() is None
    assert "pip install nvidia-cuda-nvcc-cu12" in ptxas.why_not(80)
    package = install(site / "nvidia" / "cuda_nvcc" / "bin", "12.9.86")
    assert found().path == package


@pytest.mark.parametrize("version", ["11.7.99", "12.3.103", "no version"])
def test_what_jaxlib_takes_no_notice_of(site, monkeypatch, tmp_path, version):
    install(tmp_path / "module", version)
    monkeypatch.setenv("PATH", str(tmp_path / "module"))
    package = install(site / "nvidia" / "cu13" / "bin", "13.0.88")
    assert found().path == package


def test_what_does_not_run_is_left_out(site, monkeypatch, tmp_path):
    broken = tmp_path / "module" / "ptxas"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", str(broken.parent))
    assert found() is None  # nor may it be run
    broken.chmod(0o755)
    ptxas._version.cache_clear()
    assert found() is None


def test_what_to_do_without_one_is_said_before_any_launch(site, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_PTXAS_PATH", install(tmp_path / "triton", "12.8.93"))
    needs = "jaxlib assembles the fused kernels with ptxas, here of CUDA 12.8 or newer, and finds"
    assert ptxas.why_not(80) == f"{needs} none: pip install nvidia-cuda-nvcc, or put {tmp_path}/triton on PATH"
    monkeypatch.setenv("PATH", str(tmp_path / "triton"))
    assert ptxas.why_not(80) is None


def test_a_compiler_older_than_tritons_is_refused(site, monkeypatch, tmp_path):
    """As a cluster's module puts one first on PATH: it cannot read the PTX."""
    pytest.importorskip("triton")
    install(site / "nvidia" / "cu13" / "bin", "13.0.88")
    monkeypatch.setenv("TRITON_PTXAS_PATH", install(tmp_path / "triton", "12.8.93"))
    monkeypatch.setenv("TRITON_PTXAS_BLACKWELL_PATH", install(tmp_path / "triton", "12.9.86", "ptxas-blackwell"))
    assert ptxas.why_not(80) is None
    old = install(tmp_path / "module", "12.4.131")
    monkeypatch.setenv("PATH", str(tmp_path / "module"))
    first = f"finds that of CUDA 12.4 first, {old}: put the folder of a newer one first on PATH, such as"
    assert ptxas.why_not(80).endswith(f"{first} {tmp_path}/triton")
    # Triton's for Blackwell has a name under which jaxlib does not find it.
    assert ptxas.why_not(100).endswith(f"{first} {site}/nvidia/cu13/bin (pip install nvidia-cuda-nvcc)")
    monkeypatch.setenv("TRITON_PTXAS_PATH", install(tmp_path / "triton4", "12.4.99"))  # Triton's PTX is then older, too
    assert ptxas.why_not(80) is None


def test_nothing_is_said_of_other_builds_of_jaxlib(site, monkeypatch):
    assert ptxas.plugin() is not None
    load_plugin(monkeypatch, site, "jax_cuda13_plugin", b"with a compiler of its own")
    assert ptxas.plugin() is None
    assert ptxas.why_not(90) is None


def test_the_op_says_so(site, monkeypatch):
    pytest.importorskip("triton")
    here = types.SimpleNamespace(device_kind="NVIDIA A100", platform="gpu", compute_capability="8.0")
    monkeypatch.setattr(support, "interpreted", lambda: False)
    monkeypatch.setattr(support, "device", lambda: here)
    monkeypatch.setattr(support, "capability", lambda: 80)
    monkeypatch.setattr(support, "_triton_version", lambda: "3.6.0")
    monkeypatch.setattr(support.importlib.util, "find_spec", lambda name: True)
    assert "finds none: pip install nvidia-cuda-nvcc" in support._why_not_here(named=True)
    install(site / "nvidia" / "cu13" / "bin", "99.0.1")
    assert support._why_not_here(named=True) is None


def test_a_triton_without_its_tools_is_a_reason(site, monkeypatch):
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")

    def fail(capability):
        raise RuntimeError("Cannot find ptxas")

    monkeypatch.setattr(compiler, "get_ptxas", fail)
    assert ptxas.why_not(80) == "Triton lacks its own ptxas (Cannot find ptxas): reinstall triton"
