"""Sets the sections' results beside the targets: pass or miss, and by how much."""

from __future__ import annotations

import json
import pathlib
import statistics
from typing import Any

FLEX, SWIN = 3.0, 1.3  # times as fast as flex_attention, times as many images a second as Swin-Tiny


def summarise(out: pathlib.Path) -> dict[str, Any]:
    """Returns {"targets": [{"target", "wanted", "got", "met"}], "attention_share": ...}; what was not measured is None."""
    found = {name: _read(out / f"gpu_{name}.json") for name in ("numerics", "op", "models", "scaling", "peers")}
    op = {
        (r["case"], r["dtype"], r["implementation"], r["what"]): r for r in found["op"]["rows"] if "microseconds" in r
    }
    targets = [_target("numerics: share of calls that pass", 1.0, _passed(found["numerics"]), at_least=True)]
    for (case, dtype, _, what), row in op.items():
        if "target_met" in row:
            name = f"{what}, {case}, {dtype}: times the floor"
            targets.append(_target(name, row["target_times_the_floor"], row["times_the_floor"]))
    for row in found["peers"]["rows"]:
        if row.get("peer") == "flex_attention" and row.get("bias"):
            ours = op.get((row["case"], row["dtype"], "triton", row["what"]))
            got = row["microseconds"] / ours["microseconds"] if ours and "microseconds" in row else None
            name = f"{row['what']}, {row['case']}, {row['dtype']}: flex_attention's time over ours"
            targets.append(_target(name, FLEX, got, at_least=True))
    nat = _speed(found["models"], model="nat_tiny", what="inference", implementation="triton")
    swin = _speed(found["peers"], peer="swin_tiny", what="inference")
    ratio = nat / swin if nat and swin else None
    targets.append(_target("NAT-Tiny's images a second over Swin-Tiny's, inference", SWIN, ratio, at_least=True))
    for what in ("forward", "both"):
        got = found["scaling"].get(f"{what}_slowest_over_fastest")
        targets.append(_target(f"{what}: slowest over fastest time of a token from 112^2 up", 1.1, got))
    return {"targets": targets, "attention_share": _shares(found["models"], op)}


def table(summary: dict[str, Any]) -> str:
    """Returns the targets as lines of text."""
    lines = []
    for target in summary["targets"]:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
        got = "" if target["got"] is None else f"{target['got']:.3f}"
        lines.append(f"{target['target']:72} wanted {target['wanted']:5} got {got:>7}  {verdict}")
    return "\n".join(lines)


def _shares(models: dict[str, Any], op: dict[tuple, dict[str, Any]]) -> dict[str, float]:
    """Returns the share of a model's time that its attention takes alone: the op's times over the model's."""
    import natjax

    shares = {}
    for row in models["rows"]:
        if row["implementation"] != "triton" or "milliseconds" not in row:
            continue
        config, what = natjax.get_config(row["model"]), "forward" if row["what"] == "inference" else "both"
        names = [
            f"tiny level {level + 1}{f' dilation {d}' * (d > 1)}"
            for level in range(config.num_levels)
            for d in config.layer_dilations(level)
        ]
        rows = [op.get((name, "bfloat16", "triton", what)) for name in names]
        if all(rows):
            attention = sum(r["microseconds"] for r in rows if r)
            shares[f"{row['model']} {row['what']}"] = round(attention / row["milliseconds"] / 1e3, 3)
    return shares


def _passed(numerics: dict[str, Any]) -> float | None:
    rows = [row for row in numerics["rows"] if "skipped" not in row]
    return statistics.fmean(bool(row.get("passed")) for row in rows) if rows else None


def _speed(section: dict[str, Any], **labels: Any) -> float | None:
    for row in section["rows"]:
        if all(row.get(k) == v for k, v in labels.items()) and "images_per_second" in row:
            return row["images_per_second"]
    return None


def _target(name: str, wanted: float, got: float | None, *, at_least: bool = False) -> dict[str, Any]:
    met = None if got is None else bool(got >= wanted if at_least else got <= wanted)
    return {"target": name, "wanted": wanted, "got": None if got is None else round(got, 3), "met": met}


def _read(path: pathlib.Path) -> dict[str, Any]:
    return {"rows": [], **(json.loads(path.read_text()) if path.exists() else {})}
