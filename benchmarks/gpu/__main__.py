"""Benchmarks the fused kernels on this machine's GPU, in at most 10 minutes.

Sections run one after another, in the order asked for, each in a process of its own, and write into gpu_<device>.json of --out.
What is there of the same device, versions and kernels stays where it is not measured again, and what a run that was ended from
outside has left is added. --rehearse runs all of it in small on a CPU, in some 2 minutes, where times mean nothing. --summary
measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import tempfile
import time
from typing import Any

from benchmarks.harness import CASES, RESULTS, Options, read, write
from benchmarks.rows import has_figures, merge, passed, problem
from benchmarks.sections import Section, run, say
from benchmarks.tables import markdown
from natjax.atomic import check_writable
from natjax.cli._arguments import positive_int, positive_seconds

ALL = 590  # seconds, of all sections together


def sections(rehearse: bool) -> dict[str, Section]:
    """Returns all sections, the most telling first; peers, which are slow to compile, have what the others leave."""
    kernels = ("triton",) if rehearse else ("triton", "jax_triton", "absl")
    platform = {"JAX_PLATFORMS": "cpu"} if rehearse else {}
    interpreted = platform | {"TRITON_INTERPRET": "1"} if rehearse else {}
    found = {
        "numerics": Section("gpu.numerics:measure", 70, kernels, variables=interpreted),
        "kernels": Section("gpu.kernels:measure", 70, kernels, variables=interpreted),
        "op": Section("gpu.op:measure", 100, kernels, variables=platform),
        # What compiles training steps, and began in time, may take a while to end.
        "models": Section("gpu.models:measure", 140, (*kernels, "flax", "optax"), variables=platform, grace=30),
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
    parser.add_argument("--cases", nargs="+", default=[], help=CASES)
    parser.add_argument("--within", type=positive_seconds, help=f"seconds of all sections together (default: {ALL})")
    parser.add_argument("--seconds", type=positive_seconds, help="budget of every section; all may then take longer")
    parser.add_argument("--rehearse", action="store_true", help="all of it in small, on a CPU")
    parser.add_argument(
        "--threads", type=positive_int, default=min(16, os.cpu_count() or 1), help="that compile side by side"
    )
    parser.add_argument(
        "--summary", nargs="*", type=pathlib.Path, metavar="FILE",
        help="print the tables of what is in --out, after adding these files: results of other machines, partial ones, too",
    )  # fmt: skip
    args = parser.parse_args()
    out = (args.out or (pathlib.Path(tempfile.mkdtemp()) if args.rehearse else RESULTS)).resolve()
    try:  # before anything is written, or measured that could not be added
        partial = sorted(out.glob("gpu_*.partial.json"))
        brought = [load(path) for path in args.summary or []]
        for path in complete(out):
            load(path)
        if args.summary is None or brought or partial:
            out.mkdir(parents=True, exist_ok=True)
            check_writable(out / "gpu.json")
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out has to be a folder that files can be written in: {error}")
    for path in partial:
        try:
            brought.append(load(path))
        except ValueError as error:
            say(f"{error} It is passed over.")
    for results in brought:
        for name, content in results.items():
            add(out, name, content)
    if args.summary is not None:
        if not complete(out):
            parser.error(
                f"{out} has no results of {parser.prog}: run it without --summary, or name their folder or files"
            )
        print("\n\n".join(markdown(read(path)) for path in complete(out)))
        return 0
    for path in partial:
        path.unlink()
    options = Options(args.rehearse, min(args.threads, 2) if args.rehearse else args.threads, args.cases)
    chosen = {name: sections(args.rehearse)[name] for name in args.sections}
    if args.seconds:
        chosen = {name: section._replace(seconds=args.seconds) for name, section in chosen.items()}
    deadline = started + (args.within or (float("inf") if args.seconds else ALL))
    device, files, measured = None, {}, []
    for name, content in run(chosen, options, out / "gpu", deadline):
        device = content.get("provenance", {}).get("device", device)
        path = add(out, name, content, device)
        files.setdefault(path, []).append(name)
        measured.append(succeeded(name, content))
    for path, found in files.items():
        print(markdown({name: read(path)[name] for name in found}))
        say(f"Results are in {path}.")
    return 0 if all(measured) else 1


def complete(out: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of all sections in a folder, one for each device."""
    return sorted(set(out.glob("gpu_*.json")) - set(out.glob("gpu_*.partial.json")))


def load(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns a file's results by section: of all, or what one had when it was ended from outside.

    Raises:
        ValueError: it cannot be read, has none, or has some that cannot be added to others.
    """
    expected = (
        "Expected a file of python -m benchmarks.gpu, such as gpu_nvidia_h200.json; move this away or name another."
    )
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}. {expected}") from error
    found = found if isinstance(found, dict) else {}
    if isinstance(found.get("section"), str):
        found = {found["section"]: found | {"status": "ended from outside"}}
    found = {name: content for name, content in found.items() if name in sections(False)}
    if not found:
        raise ValueError(f"{path} has no results of a GPU. {expected}")
    for name, content in found.items():
        if what := problem(content):
            raise ValueError(f"{path} has no results of a GPU in {name!r}: {what}. {expected}")
    return found


def add(out: pathlib.Path, name: str, content: dict[str, Any], device: str | None = None) -> pathlib.Path:
    """Adds the results of a section to those of its device, or of `device` where it does not say; returns their file."""
    device = content.get("provenance", {}).get("device", device) or "unknown"
    path = out / f"gpu_{re.sub(r'[^a-z0-9]+', '_', device.lower())}.json"
    results = read(path)
    results[name] = merge(results.get(name, {}), content)
    write(path, results)
    return path


def succeeded(name: str, content: dict[str, Any]) -> bool:
    """Whether a section ended well: what time or --cases left out does not count, nor peers that are not there."""
    if content["status"] == "not asked for" or (name, content["status"]) == ("peers", "skipped"):
        return True
    right = name != "numerics" or passed(content["rows"])
    return has_figures(content) and content["status"] not in ("failed", "timed out") and right


if __name__ == "__main__":
    raise SystemExit(main())
