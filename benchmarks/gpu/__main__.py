"""Benchmarks the fused kernels on this machine's GPU, in at most 8 minutes.

Sections run one after another, each in a process of its own, and write gpu_<section>.json into --out. --rehearse runs all of it
in small on a CPU, in some 2 minutes, where times mean nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import time
from typing import Any

from benchmarks.harness import RESULTS, Options, has_figures, keep, read, write
from benchmarks.sections import Section, run, say
from benchmarks.tables import markdown

ALL = 470  # seconds, of all sections together


def sections(rehearse: bool) -> dict[str, Section]:
    """Returns all sections, the most telling first; peers, which are slow to compile, have what the others leave."""
    kernels = ("triton",) if rehearse else ("triton", "jax_triton", "absl")
    platform = {"JAX_PLATFORMS": "cpu"} if rehearse else {}
    interpreted = platform | {"TRITON_INTERPRET": "1"} if rehearse else {}
    found = {
        "numerics": Section("gpu.numerics:measure", 70, kernels, variables=interpreted),
        "op": Section("gpu.op:measure", 100, kernels, variables=platform),
        "models": Section("gpu.models:measure", 110, (*kernels, "flax", "optax"), variables=platform),
        "scaling": Section("gpu.op:measure_scaling", 30, kernels, variables=platform),
        # PyTorch's GPU is PyTorch's alone: its cuDNN is not JAX's.
        "peers": Section("gpu.peers:measure", ALL, ("torch",), variables={"JAX_PLATFORMS": "cpu"}),
    }
    return {name: section._replace(gpu=not rehearse) for name, section in found.items()}


def main() -> int:
    """Runs the sections; returns 0 where none failed or hung, numerics are right and, peers aside, all have figures."""
    started, names = time.monotonic(), list(sections(False))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder (default: benchmarks/results; rehearsals: a temporary one)"
    )
    parser.add_argument("--sections", nargs="+", default=names, choices=names)
    parser.add_argument(
        "--cases", nargs="+", default=[], help="parts of names, such as 'level 1' or nat_tiny (default: all)"
    )
    parser.add_argument("--seconds", type=float, help="budget of every section, whatever all take together")
    parser.add_argument("--rehearse", action="store_true", help="all of it in small, on a CPU")
    parser.add_argument("--threads", type=int, default=8, help="that compile side by side")
    args = parser.parse_args()
    out = (args.out or (pathlib.Path(tempfile.mkdtemp()) if args.rehearse else RESULTS)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    options = Options(args.rehearse, min(args.threads, 2) if args.rehearse else args.threads, args.cases)
    chosen = {name: section for name, section in sections(args.rehearse).items() if name in args.sections}
    if args.seconds:
        chosen = {name: section._replace(seconds=args.seconds) for name, section in chosen.items()}
    deadline = float("inf") if args.seconds else started + ALL
    results, measured = {}, []
    for name, content in run(chosen, options, out / "gpu", deadline):
        path = out / f"gpu_{name}.json"
        results[name] = keep(read(path), content)
        write(path, results[name])
        measured.append(succeeded(name, content))
    print(markdown(results))
    say(f"Results are in {out}.")
    return 0 if all(measured) else 1


def succeeded(name: str, content: dict[str, Any]) -> bool:
    """Whether a section ended well: what time or --cases left out does not count, nor peers that are not there."""
    if content["status"] == "not asked for" or (name, content["status"]) == ("peers", "skipped"):
        return True
    return has_figures(content) and content["status"] not in ("failed", "timed out") and content.get("passed", True)


if __name__ == "__main__":
    raise SystemExit(main())
