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

ROOT = pathlib.Path(__file__).parents[1]
KERNELS = ROOT / "kernels" / "natjax_kernels" / "triton"
FUSED = KERNELS.parent / "fused"
PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "flax",
    "numpy",
    "triton",
    "jax-triton",
    "torch",
    "transformers",
    "safetensors",
)


def provenance(**more: Any) -> dict[str, Any]:
    """Returns date, machine, versions, commit and a hash of the fused kernels' sources, and `more`.

    Devices are asked of JAX only where it is imported already, so that a benchmark without it does not start it.
    """
    commit = _git("rev-parse", "--short", "HEAD")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_device(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": commit,
        "uncommitted_changes": commit
        and bool(_git("status", "--porcelain", "--untracked-files=no", ":!benchmarks/results")),
        "kernels_sha256": kernels_hash(),
        **more,
    }


def kernels_hash() -> str:
    """Returns a hash of the sources of the fused kernels and of their measured configurations."""
    digest = hashlib.sha256()
    for path in sorted([*FUSED.glob("*.py"), *KERNELS.glob("*.py"), KERNELS / "configs.json"]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _device() -> dict[str, Any]:
    if "jax" in sys.modules:
        import jax

        return {"device": jax.devices()[0].device_kind, "devices": len(jax.devices()), "driver": _driver()}
    return {"device": "cpu"}


def _driver() -> str | None:
    path = pathlib.Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0].strip() if path.exists() else None


def _cpu() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    """Returns what git says, or None where there is no git or no repository, as in an unpacked archive."""
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
