"""Measures what an installation takes: prints tables, writes results/install.json; some 4 minutes, and 10 GB of disk with `gpu`.

Every set of extras is installed from this tree into an empty environment. Sizes are of all its files on disk, bytecode included,
without pip. Times are medians of fresh processes in the smallest environment, bytecode and files in the system's cache.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib

from benchmarks import ROOT
from benchmarks.harness import RESULTS, write
from benchmarks.provenance import provenance
from benchmarks.tables import table

RUNS = 7
STARTS = {
    "Python by itself": "pass",
    "`import natjax`": "import natjax",
    "`natjax --help`": "from natjax.cli import main; main(['--help'])",
    "`import jax`": "import jax",
    "`natjax.neighborhood_attention`": "import natjax; natjax.neighborhood_attention",
    "`natjax.NatForImageClassification`": "import natjax; natjax.NatForImageClassification",
    "`natjax.pipeline`": "import natjax; natjax.pipeline",
}
SIZES = """
import importlib.metadata as metadata, json
packages = {}
for found in metadata.distributions():
    paths = {found.locate_file(file) for file in found.files or ()}
    packages[f"{found.name} {found.version}"] = sum(path.stat().st_size for path in paths if path.is_file())
print(json.dumps(packages))
"""


def install(folder, extra):
    """Installs natjax with an extra, or none for "", into a new environment; returns its Python and the seconds it took."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    start = time.perf_counter()
    what = f"{ROOT}[{extra}]" if extra else str(ROOT)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what]
    subprocess.run(command, check=True, cwd=folder)
    return python, time.perf_counter() - start


def sizes(python):
    """Returns the bytes of each installed package but pip, the largest first."""
    output = subprocess.run([python, "-I", "-c", SIZES], check=True, capture_output=True, text=True).stdout
    found = {name: size for name, size in json.loads(output).items() if not name.startswith("pip ")}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def seconds(python, code, folder):
    """Returns the median time of a process that runs some code."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run([python, "-I", "-c", code], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one fills the caches


def main():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.install", description=__doc__)
    parser.add_argument(
        "--extras", nargs="*", choices=extras, default=[name for name in extras if name not in ("docs", "test")]
    )
    asked = parser.parse_args().extras
    rows, starts = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for extra in ("", *asked):
            folder = pathlib.Path(temporary) / (extra or "base")
            python, took = install(folder, extra)
            packages = sizes(python)
            rows.append(
                {
                    "extra": extra or "none",
                    "packages": len(packages),
                    "megabytes": round(sum(packages.values()) / 1e6),
                    "seconds": round(took),
                    "largest": ", ".join(f"{name}: {size / 1e6:.0f}" for name, size in list(packages.items())[:6]),
                }
            )
            print(rows[-1], flush=True)  # installing takes minutes
            if not extra:
                for what, code in STARTS.items():
                    starts.append({"start": what, "milliseconds": round(1000 * seconds(python, code, folder))})
    for found in (rows, starts):
        print(table(tuple(found[0]), found))
    write(RESULTS / "install.json", {"provenance": provenance(runs=RUNS), "sizes": rows, "starts": starts})


if __name__ == "__main__":
    main()
