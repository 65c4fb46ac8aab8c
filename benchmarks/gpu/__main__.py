"""Benchmarks the fused kernels on this machine's GPU: `python -m benchmarks.gpu --out benchmarks/results/`.

Sections run one after another, in at most 8 minutes together, and each writes gpu_<section>.json; gpu_summary.json says which
targets are met. `--rehearse` runs all of it in small on a CPU, where times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys
import tempfile

from benchmarks.harness import GRACE, Report, run_section, write
from benchmarks.provenance import ROOT, provenance

# Seconds of budget, most telling first. What would start later is skipped; 10 seconds more and the section is ended.
SECTIONS = {"numerics": 70, "op": 90, "models": 130, "peers": 85, "scaling": 35}


def main() -> int:
    """Runs the sections; returns 0 where all were completed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder for the results (rehearsals: a temporary one by default)"
    )
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--seconds", type=float, help="budget of every section")
    parser.add_argument("--rehearse", action="store_true", help="all of it in small, on a CPU")
    parser.add_argument("--threads", type=int, default=8, help="that compile side by side")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # run one section in this process
    args = parser.parse_args()
    if args.inside:
        inside(args.sections[0], args.out, args.seconds, args.rehearse, args.threads)
        return 0
    out = args.out or (pathlib.Path(tempfile.mkdtemp()) if args.rehearse else ROOT / "benchmarks" / "results")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    statuses = {}
    for section in args.sections:
        seconds = args.seconds or SECTIONS[section]
        command = [sys.executable, "-m", "benchmarks.gpu", "--inside", "--sections", section]
        command += [
            "--out",
            str(out),
            "--seconds",
            str(seconds),
            "--threads",
            str(args.threads),
            *(["--rehearse"] if args.rehearse else []),
        ]
        path = out / f"gpu_{section}.json"
        statuses[section] = run_section(path, section, command, seconds + GRACE, environment(section, args.rehearse))
        print(f"{section}: {statuses[section]}", flush=True)
    from benchmarks.gpu.summary import summarise, table

    summary = summarise(out) | {"sections": statuses, "rehearsal": args.rehearse}
    write(out / "gpu_summary.json", summary)
    print(table(summary))
    print(f"Results are in {out}.")
    return 0 if all(status == "complete" for status in statuses.values()) else 1


def inside(section: str, out: pathlib.Path, seconds: float, rehearse: bool, threads: int) -> None:
    """Runs a section in this process."""
    path = out / f"gpu_{section}.json"
    import jax

    if not rehearse and jax.default_backend() != "gpu":
        raise SystemExit(f"This needs a GPU; JAX found {jax.devices()[0].device_kind}. --rehearse runs on a CPU.")
    report = Report(path, section, provenance(rehearsal=rehearse), seconds)
    importlib.import_module(f"benchmarks.gpu.{section}").measure(report, rehearse, 1 if rehearse else threads)
    if not report.content["rows"] or all("error" in row for row in report.content["rows"]):
        raise SystemExit("Nothing could be measured; the rows say why.")


def environment(section: str, rehearse: bool) -> dict[str, str]:
    """Returns the environment of a section's process."""
    paths = [
        str(ROOT),
        *(str(ROOT / name) for name in ("kernels", "convert", "train")),
        os.environ.get("PYTHONPATH", ""),
    ]
    found = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # JAX must not take all of the GPU's memory, as PyTorch wants some in the same process.
    found |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    found["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if rehearse:
        found["JAX_PLATFORMS"] = "cpu"
        if section == "numerics":
            found["TRITON_INTERPRET"] = "1"
    return found


if __name__ == "__main__":
    raise SystemExit(main())
