"""natjax and its peers on this machine's CPU: `python -m benchmarks.cpu` prints tables, writes cpu.json and cpu.png.

Parts run one after another, each in a process of its own with a time limit: what fails or hangs is recorded, the others go
on. `--only` measures some parts again and leaves the others' results as they are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import pathlib
import sys
import tempfile
import threading
import time
from typing import Any

from benchmarks.cpu.summary import BUSY, draw, markdown
from benchmarks.harness import GRACE, OUT_OF_TIME, Report, run_section, write
from benchmarks.provenance import ROOT, provenance

# Seconds of budget: full and quick. What would start later is skipped.
PARTS = {
    "floor": (50, 12),
    "parts": (100, 30),
    "step": (600, 130),
    "op": (130, 20),
    "start": (340, 60),
    "models": (2000, 90),
}


def main() -> int:
    """Runs the parts; returns 0 where all of them measured all they had to, peers that are not there aside."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results", help="folder for the results"
    )
    parser.add_argument(
        "--only", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    full, quick = (math.ceil(sum(seconds) / 60) for seconds in zip(*PARTS.values(), strict=True))
    quicker = f"fewer cases and samples: {quick} minutes at most instead of {full}"
    parser.add_argument("--quick", action="store_true", help=quicker)
    parser.add_argument("--inside", type=float, help=argparse.SUPPRESS)  # run one part in this process
    args = parser.parse_args()
    if args.inside:
        inside(args.only[0], args.out, args.quick, args.inside)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "cpu.json"
    results = read(path)
    load = os.getloadavg()[0]
    if load > BUSY:
        say(
            "Others compute on this machine, which slows PyTorch (OpenMP) far more than XLA: times and ratios will mislead."
        )
    budgets = {part: PARTS[part][args.quick] for part in args.only}
    for i, part in enumerate(args.only):
        left = sum(budgets[p] for p in args.only[i:])
        say(
            f"{part} ({i + 1} of {len(args.only)}): at most {budgets[part]} s; all is done by {clock(left)} at the latest"
        )
        results[part] = run(part, args.quick, budgets[part]) | {"load_before_run": load}
        rows = results[part]["rows"]
        failed, skipped = (sum(why in row for row in rows) for why in ("error", "skipped"))
        say(
            f"  {results[part]['status']} after {results[part]['seconds']} s: "
            f"{len(rows)} rows, {failed} failed, {skipped} skipped"
        )
        write(path, results)
    print(markdown(results))
    draw(results, args.out / "cpu.png")
    say(f"Results are in {args.out}.")
    return 0 if all(results[part]["status"] == "complete" for part in args.only) else 1


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the results so far: none where there is no file, or none that can be read."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        say(f"{path} is empty or damaged ({error}): it starts afresh, with the parts that are measured now.")
        return {}


def run(part: str, quick: bool, seconds: float) -> dict[str, Any]:
    """Runs a part in a process of its own and returns its content."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"{part}.json")
        command = [sys.executable, "-m", "benchmarks.cpu", "--only", part, "--out", str(path), "--inside", str(seconds)]
        stop = threading.Event()
        watcher = threading.Thread(target=watch, args=(path, seconds, stop))
        watcher.start()
        try:
            run_section(path, part, command + ["--quick"] * quick, seconds + 3 * GRACE, environment(part, folder))
        finally:
            stop.set()
            watcher.join()
        content = json.loads(path.read_text())
        return content | {"status": status(content)}


def status(content: dict[str, Any]) -> str:
    """Returns how a part ended: as its process did or, where that was well, whether it measured all it had to."""
    if content["status"] != "complete":
        return content["status"]
    if any(row.get("skipped") == OUT_OF_TIME for row in content["rows"]):
        return "out of time"
    return "with errors" if any("error" in row for row in content["rows"]) else "complete"


def watch(path: pathlib.Path, seconds: float, stop: threading.Event) -> None:
    """Shows how far a part is, where somebody looks."""
    started = time.monotonic()
    while sys.stderr.isatty() and not stop.wait(1):
        rows = len(json.loads(path.read_text())["rows"]) if path.exists() else 0
        passed = time.monotonic() - started
        line = f"  {rows} rows, {passed:.0f} s, {max(0.0, seconds - passed):.0f} s left at most"
        print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(f"\r{'':60}\r", end="", file=sys.stderr, flush=True)


def inside(part: str, path: pathlib.Path, quick: bool, seconds: float) -> None:
    """Runs a part in this process."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    report = Report(path, part, provenance(quick=quick, load=os.getloadavg()), seconds)
    importlib.import_module(f"benchmarks.cpu.{part}").measure(report, quick)
    report.note(load_after=os.getloadavg())


def environment(part: str, folder: str) -> dict[str, str]:
    """Returns the environment of a part's process: this tree's packages, a CPU, and no compiled programs but its own.

    Everybody gets large pages (glibc on Linux) but where the start of a process is measured: XLA takes the memory of a call fresh
    from the system, which costs up to a third of a training step.
    """
    folders = [str(ROOT), *(str(ROOT / name) for name in ("kernels", "convert", "train"))]
    paths = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH")]))
    found = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    found |= {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
    found["TORCHINDUCTOR_CACHE_DIR"] = folder
    return found | ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if part != "start" else {})


def clock(seconds: float) -> str:
    """Returns the time of day in so many seconds."""
    return time.strftime("%H:%M", time.localtime(time.time() + seconds))


def say(message: str) -> None:
    """Prints a line about the run, which is no result, on stderr."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
