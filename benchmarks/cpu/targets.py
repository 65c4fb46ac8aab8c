"""What natjax wants to reach on a CPU, beside what the results say: ratios within one run, or seconds on the machine at hand."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

SWIN = ("swin", "swin compiled")


class Target(NamedTuple):
    """A figure, what it should be at least or at most, and what it is: None where it was not measured."""

    name: str
    wanted: float
    got: float | None
    at_least: bool

    @property
    def verdict(self) -> str:
        """Met, missed or not measured."""
        if self.got is None:
            return "not measured"
        return "met" if (self.got >= self.wanted if self.at_least else self.got <= self.wanted) else "missed"


def targets(results: dict[str, Any]) -> list[Target]:
    """Returns all of them."""
    found = []
    for model, batch, what, wanted in (
        ("nat_mini", 1, "inference", 4.0),
        ("nat_mini", 8, "inference", 4.0),
        ("nat_tiny", 1, "inference", 4.0),
        ("nat_tiny", 8, "inference", 4.0),
        ("nat_mini", 8, "training step", 6.0),
        ("nat_tiny", 8, "training step", 6.0),
    ):
        labels = {"kind": "time", "model": model, "batch": batch, "what": what}
        ratio = value(results, "models", "ratio", entrant="hf natten", **labels)
        found.append(Target(f"{model}, batch {batch}, {what}: times as fast as on NATTEN", wanted, ratio, True))
    for batch in (1, 8):
        labels = {"kind": "time", "model": "nat_tiny", "batch": batch, "what": "inference"}
        ours = value(results, "models", "gigamacs_per_image", entrant="natjax", **labels)
        faster = []  # beside each in turn, never one case's figure over another's
        for swin in SWIN:
            ratio = value(results, "models", "ratio", entrant=swin, **labels)
            theirs = value(results, "models", "gigamacs_per_image", entrant=swin, **labels)
            if ratio and theirs and ours:
                faster.append(ratio * theirs / ours)
        ratio = min(faster, default=None)
        found.append(Target(f"nat_tiny, batch {batch}: images/s per GMAC over Swin-Tiny's", 1.2, ratio, True))
    share = value(results, "parts", "of_floor", kind="whole", batch=8)
    found.append(Target("nat_tiny, batch 8: share of the rate of matrix products", 0.45, share, True))
    for what in ("forward", "both"):
        rows = [row for row in results.get("op", {}).get("rows", []) if row.get("group") == "sides" and what in row]
        times = [row[what]["nanoseconds_per_token"] for row in rows if row["shape"][1] > 56]
        flat = max(times) / min(times) if len(times) > 1 else None
        found.append(Target(f"op, {what}: slowest over fastest token, 112² to 448²", 1.1, flat, False))
    labels = {"kind": "memory", "model": "nat_tiny", "batch": 8, "what": "inference"}
    natjax, natten = (value(results, "start", "peak_megabytes", entrant=e, **labels) for e in ("natjax", "hf natten"))
    ratio = natjax / natten if natjax and natten else None
    found.append(Target("nat_tiny, batch 8: peak memory over NATTEN's", 1.0, ratio, False))
    labels = {"kind": "first call", "model": "nat_tiny", "batch": 8, "what": "inference", "entrant": "natjax"}
    found.append(Target("nat_tiny: seconds to compile", 6.0, value(results, "models", "seconds", **labels), False))
    for entrant, wanted in (("natjax", 10.0), ("natjax cached", 4.0)):
        seconds = value(results, "start", "seconds", kind="start", entrant=entrant)
        found.append(Target(f"{entrant}: seconds from process start to first logits", wanted, seconds, False))
    return found


def value(results: dict[str, Any], part: str, field: str, **labels: Any) -> float | None:
    """Returns the median of a field over the rows with these labels."""
    rows = results.get(part, {}).get("rows", [])
    found = [
        row[field] for row in rows if row.get(field) is not None and all(row.get(k) == v for k, v in labels.items())
    ]
    return statistics.median(found) if found else None
