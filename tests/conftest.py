"""What all tests share."""

import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import sys

import pytest

# The fused kernels run in Triton's interpreter here, which has to be said before anything imports Triton.
os.environ["TRITON_INTERPRET"] = "1"

# Most of the time goes into compiling. Workers, the processes that tests start and later runs share what was compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# Nearly all programs here run once. Compiling and running them takes a third of the time without LLVM's optimisations and, before
# JAX 0.11, without XLA's newer code for fusions. Whoever sets XLA_FLAGS, to nothing too, gets programs as users have them.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jax").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"

if importlib.util.find_spec("beartype"):  # not in the environment that compiles for GPUs
    os.environ.setdefault("XLA_FLAGS", QUICK)
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import checked_annotations

    checked_annotations.install()


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_module():
    """Lets what a module compiled go with it: a process that keeps the programs of thousands of tests takes gigabytes."""
    yield
    import jax  # after what is set above

    jax.clear_caches()


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window, as installed on this machine."""
    from playwright.sync_api import sync_playwright  # for tests of pages alone

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    assert executable, "Tests with the marker `browser` need chromium or google-chrome; neither is installed."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()
