"""Runs the sections of a benchmark, each in a process of its own, so that one that fails or hangs is recorded and the rest go on.

A section writes its rows to a partial file after every measurement. When its budget is spent nothing new starts, and after its
grace the process is ended. `python -m benchmarks.sections` is such a process.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks import ROOT
from benchmarks.harness import OUT_OF_TIME, Options, Report
from benchmarks.provenance import provenance
from benchmarks.rows import outcome

GRACE = 10.0  # seconds that a section has to end by itself after its budget, where nothing else is said
TAIL = 3000  # characters of a failed section's output that are kept


class Section(NamedTuple):
    """What runs in a process of its own.

    Attributes:
        work: "module:function" of benchmarks, called with a Report and Options.
        seconds: budget, with the imports of the process in it.
        needs: packages without which it is skipped.
        gpu: whether it needs a GPU.
        variables: environment variables of the process.
        grace: seconds after the budget in which what was begun can end.
    """

    work: str
    seconds: float
    needs: tuple[str, ...] = ()
    gpu: bool = False
    variables: Mapping[str, str] = {}
    grace: float = GRACE


def run(
    sections: Mapping[str, Section], options: Options, prefix: pathlib.Path, deadline: float = float("inf")
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs sections one after another; yields the name and the content of each.

    Args:
        sections: by name.
        options: of the run.
        prefix: of partial files: <prefix>_<name>.partial.json.
        deadline: when all have to be over, by `time.monotonic()`.
    """
    for name, section in sections.items():
        seconds = min(section.seconds, deadline - section.grace - time.monotonic())
        say(f"{name}: at most {max(0, seconds):.0f} s, from {time.strftime('%H:%M:%S')}")
        missing = [package for package in section.needs if not importlib.util.find_spec(package)]
        if missing or seconds <= 0:
            status, reason = ("skipped", f"no {', '.join(missing)}") if missing else ("out of time", OUT_OF_TIME)
            content = {"section": name, "status": status, "reason": reason, "rows": []}
            say(f"  {status}: {reason}" + "; benchmarks/README.md says how to bring it" * bool(missing))
        else:
            path = prefix.with_name(f"{prefix.name}_{name}.partial.json")
            command = [sys.executable, "-m", "benchmarks.sections", name, str(path), str(seconds)]
            command += [json.dumps([section, options])]
            content = run_section(path, name, command, seconds + section.grace, environment(**section.variables))
            failed, skipped = (sum(why in row for row in content["rows"]) for why in ("error", "skipped"))
            about = f"{len(content['rows'])} rows, {failed} failed, {skipped} skipped"
            say(f"  {content['status']} after {content['seconds']} s: {about}\n{content.get('output', '')}".rstrip())
        yield name, content


def say(message: str) -> None:
    """Prints a line about the run, which is no result, on stderr."""
    print(message, file=sys.stderr, flush=True)


def run_section(
    path: pathlib.Path, section: str, command: list[str], limit: float, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Runs a section's command, which writes `path`; takes that file away and returns its content.

    Its `status` is that of its rows (`outcome`) or, if the process did not end well, "failed" or
    "timed out" with the end of the output beside it.
    """
    path.unlink(missing_ok=True)
    # Raises, so that `finally` ends the process, which would compute on beside the next run.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        # In a session of its own, so that at the limit the compilers it started end with it.
        options: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True, "cwd": ROOT}
        process = subprocess.Popen(command, env=dict(environment), **options)
        try:
            status = "failed" if process.wait(limit) else ""
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            signal.signal(signal.SIGTERM, before)
        log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
        tail = log.read().decode(errors="replace")
    content = {"section": section, "rows": []} | (json.loads(path.read_text()) if path.exists() else {})
    for file in (path, *path.parent.glob(f".{path.name}.*")):  # the others are of a write that was cut off
        file.unlink(missing_ok=True)
    content |= {"exit_code": code, "output": tail} if status else {}
    return content | {"status": status or outcome(content["rows"]), "seconds": round(time.monotonic() - started, 1)}


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of a section's process: this one's, without what would change what is measured."""
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "TRITON_INTERPRET")}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


def main(name: str, path: str, seconds: str, what: str) -> None:
    """Runs a section in this process, whose imports are in its time."""
    started = time.monotonic()
    section, options = (kind(*found) for kind, found in zip((Section, Options), json.loads(what), strict=True))
    module, _, function = section.work.partition(":")
    work = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    origin = provenance(**options._asdict())
    report = Report(pathlib.Path(path), name, origin, float(seconds) - (time.monotonic() - started))
    if section.gpu and origin["device"] == "cpu":
        raise SystemExit("This needs a GPU, and found none. --rehearse runs on a CPU.")
    work(report, options)
    rows = report.content["rows"]
    if (rows or not options.cases) and all("error" in row for row in rows):
        raise SystemExit("Nothing could be measured; the rows say why.")


if __name__ == "__main__":
    main(*sys.argv[1:])
