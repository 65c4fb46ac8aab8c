"""The `ptxas` with which jaxlib assembles the fused kernels when they are first launched: which one it takes, and what is amiss.

Triton writes PTX for the CUDA of its own ptxas; jaxlib assembles it with another, and fails at the launch if there is none or
if it is too old. Where jaxlib looks is XLA's stream_executor/cuda/subprocess_compilation.cc and tsl/platform/default/
cuda_root_path.cc, and was compared with the plugins of JAX 0.10.0, 0.11.2 and 0.12.0 for CUDA 12 and 13. Neither
`--xla_gpu_cuda_data_dir` nor TRITON_PTXAS_PATH has a part in it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import sys

# JAX's plugins; pip's package with a ptxas for each, and the folder beside the plugin in which that is.
_PLUGINS = {
    "jax_cuda13_plugin": ("nvidia-cuda-nvcc", "nvidia/cu13"),
    "jax_cuda12_plugin": ("nvidia-cuda-nvcc-cu12", "nvidia/cuda_nvcc"),
}
_OLDEST, _BROKEN = (11, 8, 0), (12, 3, 103)  # jaxlib takes none older, nor this one


@dataclasses.dataclass(frozen=True)
class Plugin:
    """JAX's CUDA plugin, where it runs ptxas.

    Attributes:
        folder: its own.
        package: what to install for it.
        toolkit: where that package puts its files, beside the plugin.
    """

    folder: str
    package: str
    toolkit: str


@dataclasses.dataclass(frozen=True)
class Ptxas:
    """A ptxas.

    Attributes:
        path: where it is.
        version: of CUDA, such as (13, 0, 88).
    """

    path: str
    version: tuple[int, ...]


def plugin() -> Plugin | None:
    """Returns JAX's CUDA plugin; None without one, or if it has a compiler linked into it and needs no ptxas."""
    for name, (package, toolkit) in _PLUGINS.items():
        library = getattr(sys.modules.get(f"{name}._triton"), "__file__", None)  # loaded with JAX
        if library and _runs_ptxas(library):
            return Plugin(os.path.dirname(library), package, toolkit)
    return None


def find(plugin: Plugin) -> Ptxas | None:
    """Returns the ptxas that the plugin takes now: PATH comes first, then where CUDA is usually installed."""
    beside = (
        f"../{plugin.toolkit}",
        f"../../{plugin.toolkit}",
        "cuda",
        "../../../..",
        "../../../../..",
    )  # the last: conda's
    roots = ["/usr/local/cuda", "/opt/cuda", *(os.path.join(plugin.folder, path) for path in beside)]
    if home := os.environ.get("CUDA_HOME"):
        roots.insert(0, home)
    folders = [
        "bin",
        *os.environ.get("PATH", "").split(":"),
        *(f"{root}/bin" for root in roots),
    ]  # "bin": as jaxlib has it
    for path in (os.path.join(folder, "ptxas") for folder in folders):
        version = _version(path) if os.path.exists(path) else None
        if version and version >= _OLDEST and version != _BROKEN:
            return Ptxas(os.path.realpath(path), version)
    return None


def why_not(capability: int) -> str | None:
    """Returns why kernels could not be assembled for this compute capability (times ten), or None where nothing is amiss."""
    if (here := plugin()) is None:
        return None
    from triton.backends.nvidia.compiler import get_ptxas, ptx_get_version

    try:
        own = get_ptxas(capability)  # Triton's, whose PTX it writes
    except RuntimeError as error:
        return f"Triton lacks its own ptxas ({error}): reinstall triton"
    folder, name = os.path.split(own.path)
    newer = folder if name == "ptxas" else None  # which jaxlib finds if it is on PATH
    needs = f"jaxlib assembles the fused kernels with ptxas, here of CUDA {own.version} or newer, and finds"
    found = find(here)
    if found is None:
        return f"{needs} none: pip install {here.package}" + (f", or put {newer} on PATH" if newer else "")
    cuda = "{}.{}".format(*found.version)
    if ptx_get_version(cuda) >= ptx_get_version(own.version):
        return None
    newer = newer or f"{os.path.dirname(here.folder)}/{here.toolkit}/bin (pip install {here.package})"
    return (
        f"{needs} that of CUDA {cuda} first, {found.path}: put the folder of a newer one first on PATH, such as {newer}"
    )


@functools.cache
def _runs_ptxas(library: str) -> bool:
    """Returns whether no compiler is linked into jaxlib's library, which then has a message to say so."""
    return b"built without libnvptxcompiler" in pathlib.Path(library).read_bytes()


@functools.cache
def _version(path: str) -> tuple[int, ...] | None:
    """Returns the version that a ptxas says, as (12, 8, 93); None where it does not run."""
    try:
        ran = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    said = re.search(r"\bV(\d+)\.(\d+)\.(\d+)\b", ran.stdout)
    return said and tuple(map(int, said.groups()))
