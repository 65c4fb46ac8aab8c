"""What all tests share."""

import importlib.util
import os
import pathlib
import sys

# The fused kernels run in Triton's interpreter here, which has to be said before anything imports Triton.
os.environ["TRITON_INTERPRET"] = "1"

# Most of the time goes into compiling. Workers, the processes that tests start and later runs share what was compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

if importlib.util.find_spec("beartype"):  # not in the environment that compiles for GPUs
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import checked_annotations

    checked_annotations.install()
