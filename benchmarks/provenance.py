"""Where, when and on what a benchmark ran: one dict for all of them, without names of machines or folders."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

from benchmarks import ROOT

KERNELS = ROOT / "kernels" / "natjax_kernels"
NOT_FUSED = ("xla", "reference.py")  # what the fused kernels do not use
PACKAGES = "jax jaxlib jax-cuda13-plugin flax numpy triton jax-triton torch transformers natten safetensors"
COMMIT = "NATJAX_COMMIT"  # environment variable: the commit of a tree that was carried without its repository


def provenance(**more: Any) -> dict[str, Any]:
    """Returns date, machine and its load, versions, commit and a hash of the sources of the fused kernels, and `more`.

    Without a repository, the commit is what the variable `COMMIT` says, and whether there are changes is not known.
    """
    commit = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", ":!benchmarks/results")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_device(),
        "cpu": _line("/proc/cpuinfo", "model name").partition(":")[2].strip() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES.split() if (found := _version(name))},
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "commit": commit or os.environ.get(COMMIT),
        "uncommitted_changes": commit and bool(changes),
        "kernels_sha256": kernels_hash(),
        **more,
    }


def kernels_hash() -> str:
    """Returns a hash of all sources of natjax_kernels but `NOT_FUSED`, and of the measured configurations."""
    digest = hashlib.sha256()
    for path in sorted([*KERNELS.rglob("*.py"), KERNELS / "triton" / "configs.json"]):
        name = path.relative_to(KERNELS)
        if name.parts[0] not in NOT_FUSED:
            digest.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _device() -> dict[str, Any]:
    """Asks only what is imported already, so that a benchmark without JAX does not start it. PyTorch is GPU peers'."""
    driver = _line("/proc/driver/nvidia/version", "") or None
    if (jax := sys.modules.get("jax")) and (jax.default_backend() != "cpu" or "torch" not in sys.modules):
        return {"device": jax.devices()[0].device_kind, "devices": len(jax.devices()), "driver": driver}
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(), "devices": torch.cuda.device_count(), "driver": driver}
    return {"device": "cpu"}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _line(path: str, start: str) -> str:
    """Returns the first line of a file that starts so, or nothing."""
    lines = pathlib.Path(path).read_text().splitlines() if os.path.exists(path) else []
    return next((line.strip() for line in lines if line.startswith(start)), "")


def _git(*command: str) -> str | None:
    """Returns what git says, or None where there is no git or no repository, as in an unpacked archive."""
    try:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
