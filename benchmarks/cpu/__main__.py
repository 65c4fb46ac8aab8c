"""natjax and its peers on this machine's CPU: prints tables, writes cpu.json and cpu.png into --out.

Parts run one after another, each in a process of its own with a time limit: what fails or hangs is recorded, the others go on.
--only measures some parts again and leaves the others' results as they are. All parts take at most 54 minutes, --quick 6.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

from benchmarks.cpu.tables import BUSY, draw, markdown
from benchmarks.harness import GRACE, OUT_OF_TIME, RESULTS, Report, environment, keep, read, run_section, write
from benchmarks.provenance import provenance

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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder (default: benchmarks/results)")
    parser.add_argument(
        "--only", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    full, quick = (math.ceil(sum(seconds) / 60) for seconds in zip(*PARTS.values(), strict=True))
    quicker = f"fewer cases and samples: {quick} minutes at most instead of {full}"
    parser.add_argument("--quick", action="store_true", help=quicker)
    parser.add_argument("--inside", type=float, help=argparse.SUPPRESS)  # run one part in this process, into --out
    args = parser.parse_args()
    if args.inside:
        inside(args.only[0], args.out, args.quick, args.inside)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "cpu.json"
    results, load, complete = read(path), os.getloadavg()[0], True
    if load > BUSY:
        say("Others compute on this machine, which slows PyTorch far more than XLA: times and ratios will mislead.")
    for part in args.only:
        budget = PARTS[part][args.quick]
        say(f"{part}: at most {budget} s, from {time.strftime('%H:%M:%S')}")
        content = run(part, args.quick, budget) | {"load_before_run": load}
        failed, skipped = (sum(why in row for row in content["rows"]) for why in ("error", "skipped"))
        about = f"{len(content['rows'])} rows, {failed} failed, {skipped} skipped"
        say(f"  {content['status']} after {content['seconds']} s: {about}")
        complete &= content["status"] == "complete"
        results[part] = keep(results.get(part, {}), content)
        if results[part] is not content:
            say(f"  It has no figures; those of before stay. The end of its output:\n{content.get('output', '')}")
        write(path, results)
    print(markdown(results))
    draw(results, args.out / "cpu.png")
    say(f"Results are in {args.out}.")
    return 0 if complete else 1


def run(part: str, quick: bool, seconds: float) -> dict[str, Any]:
    """Runs a part in a process of its own and returns its content.

    Every part has large pages (glibc on Linux) but the one that measures the start of a process: XLA takes the memory of a call
    fresh from the system, which costs up to a third of a training step.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"{part}.json")
        command = [sys.executable, "-m", "benchmarks.cpu", "--only", part, "--out", str(path), "--inside", str(seconds)]
        pages = {} if part == "start" else {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        variables = environment(JAX_PLATFORMS="cpu", TORCHINDUCTOR_CACHE_DIR=folder, **pages)
        content = run_section(path, part, command + ["--quick"] * quick, seconds + 3 * GRACE, variables)
    return content | {"status": status(content)}


def status(content: dict[str, Any]) -> str:
    """Returns how a part ended: as its process did or, where that was well, whether it measured all it had to."""
    if content["status"] != "complete":
        return content["status"]
    if any(row.get("skipped") == OUT_OF_TIME for row in content["rows"]):
        return "out of time"
    return "with errors" if any("error" in row for row in content["rows"]) else "complete"


def inside(part: str, path: pathlib.Path, quick: bool, seconds: float) -> None:
    """Runs a part in this process."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    report = Report(path, part, provenance(quick=quick, load=os.getloadavg()), seconds)
    module = importlib.import_module(f"benchmarks.cpu.{'parts' if part == 'step' else part}")
    (module.measure_step if part == "step" else module.measure)(report, quick)
    report.note(load_after=os.getloadavg())


def say(message: str) -> None:
    """Prints a line about the run, which is no result, on stderr."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
