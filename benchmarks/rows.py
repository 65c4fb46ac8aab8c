"""Which results stay when a section is measured again: rows of two runs are of one where device, versions and kernels agree."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.harness import OUT_OF_TIME

# What says which measurement a row is, and of what runs are one.
LABELS = ("call", "case", "model", "peer", "kernel", "config", "dtype", "implementation", "what")
ORIGIN = ("device", "versions", "kernels_sha256", "xla_flags", "small")


def has_figures(content: dict[str, Any]) -> bool:
    """Whether something was measured in a section."""
    return any(map(_measured, content.get("rows", [])))


def problem(content: Any) -> str | None:
    """Returns why what a file has of a section of `benchmarks.gpu` is none, or None where it is one."""
    if not isinstance(content, dict) or not _texts({"output": ""} | content, "status", "output"):
        return "it is no dict with a status"
    rows, origin = content.get("rows"), content.get("provenance", {"device": "", "date": ""})
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return "its rows are no list of dicts"
    if not all(_texts(row, *({"date", "error", "skipped"} & row.keys())) for row in rows):
        return "its rows have a date, error or reason that is no text"
    if any(isinstance(row.get(label), list | dict) for row in rows for label in LABELS):
        return "its rows have lists or dicts for labels"
    if not isinstance(origin, dict) or not _texts(origin, "device", "date"):
        return "its provenance has no device and date"
    if "load_before_run" in content or (has_figures(content) and origin["device"] == "cpu" and not origin.get("small")):
        return "it was measured on a CPU"
    return None


def outcome(rows: list[dict[str, Any]]) -> str:
    """Returns whether a section whose process ended well measured all it had to, peers that are not there aside."""
    if not rows:
        return "not asked for"  # by --cases
    if any(row.get("skipped") == OUT_OF_TIME for row in rows):
        return "out of time"
    return "with errors" if any("error" in row for row in rows) else "complete"


def passed(rows: list[dict[str, Any]]) -> bool:
    """Whether all that was checked is right; what could not be checked is not."""
    return all(row.get("passed", "skipped" in row) for row in rows)


def keep(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Returns which results of a section to keep: the new ones, unless they have no figures and the old ones do."""
    if has_figures(old) and not has_figures(new):
        print("  It has no figures; those of before stay.", file=sys.stderr, flush=True)
        return old
    return new


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Returns the results of a section with the rows of both runs, where they are of one origin; else as `keep` does.

    A row that was measured again is replaced; one of the old run has its `date`. Dates say which run is the new one, where both
    have one.
    """
    if _date(old) and _date(new) and _date(new) < _date(old):
        old, new = new, old
    kept = keep(old, new)
    if kept is old or not has_figures(old):
        return kept
    if _origin(old) != _origin(new):
        what = "device, versions, flags or kernels"
        print(f"  Results of {_date(old)} are of other {what} than those of {_date(new)} and go.", file=sys.stderr)
        return kept
    rows = {_labels(row): {"date": _date(old)} | row for row in old["rows"]}
    for row in new["rows"]:
        before = rows.get(_labels(row), {"skipped": "never measured"})
        later = row.get("date", _date(new)) >= before.get("date", "")  # of what either run has from runs before
        if not _measured(before) or (_measured(row) and later):
            rows[_labels(row)] = row
    merged = old | new | {"rows": list(rows.values())}
    if new["status"] in ("complete", "with errors", "out of time"):  # others are of how the process ended
        merged["status"] = outcome(merged["rows"])
    if "passed" in merged:
        merged["passed"] = passed(merged["rows"])
    return merged


def _texts(found: dict[str, Any], *names: str) -> bool:
    return all(isinstance(found.get(name), str) for name in names)


def _measured(row: dict[str, Any]) -> bool:
    return not {"error", "skipped"} & row.keys()


def _date(content: dict[str, Any]) -> str:
    return content.get("provenance", {}).get("date") or ""


def _labels(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(label) for label in LABELS)


def _origin(content: dict[str, Any]) -> list[Any]:
    return [content.get("provenance", {}).get(name) for name in ORIGIN]
