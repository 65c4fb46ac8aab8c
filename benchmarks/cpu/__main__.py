"""natjax and its peers on this machine's CPU: prints tables, writes cpu.json and cpu.png into --out.

Parts run one after another, each in a process of its own with a time limit: what fails or hangs is recorded, the others go on.
--only measures some parts again and leaves the others' results as they are. All parts take some 70 minutes, --quick 7.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile

from benchmarks.harness import RESULTS, Options, read, write
from benchmarks.rows import keep
from benchmarks.sections import Section, run, say
from benchmarks.tables import BUSY, draw, markdown

GRACE = 30.0  # seconds that a part has to end what it began
# What measures, and seconds of budget: full and quick.
PARTS = {
    "floor": ("cpu.floor:measure", 50, 12),
    "parts": ("cpu.parts:measure", 100, 30),
    "step": ("cpu.parts:measure_step", 600, 130),
    "op": ("cpu.op:measure", 130, 20),
    "start": ("cpu.start:measure", 340, 60),
    "models": ("cpu.models:measure", 2000, 90),
    "segmentation": ("cpu.models:measure_segmenters", 1800, 200),
    "detection": ("cpu.models:measure_detectors", 900, 200),
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
    parser.add_argument("--quick", action="store_true", help="fewer cases and samples")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path, load, complete = args.out / "cpu.json", os.getloadavg()[0], True
    results = read(path)
    if load > BUSY:
        say("Others compute on this machine, which slows PyTorch far more than XLA: times and ratios will mislead.")
    with tempfile.TemporaryDirectory() as cache:
        sections = {part: section(part, args.quick, cache) for part in args.only}
        for part, content in run(sections, Options(args.quick), args.out.resolve() / "cpu"):
            complete &= content["status"] == "complete"
            results[part] = keep(results.get(part, {}), content | {"load_before_run": load})
            write(path, results)
    print(markdown(results))
    draw(results, args.out / "cpu.png")
    say(f"Results are in {args.out}.")
    return 0 if complete else 1


def section(part: str, quick: bool, cache: str) -> Section:
    """Returns how a part is run.

    Every part has large pages (glibc on Linux) but the one that measures the start of a process: XLA takes the memory of a call
    fresh from the system, which costs up to a third of a training step.
    """
    work, *seconds = PARTS[part]
    variables = {"JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_CACHE_DIR": cache}
    if part != "start":
        variables["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    return Section(work, seconds[quick], variables=variables, grace=GRACE)


if __name__ == "__main__":
    raise SystemExit(main())
