"""Sets results of one kind of device side by side: the op and models beside their peers, attention's share of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import natjax


def summarise(sections: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
    """Returns times and ratios, and a text of them.

    Sections of another kind of device than `op` (or the first there is) are left out, and named.
    """
    kinds = {name: found["provenance"]["device"] for name, found in sections.items() if "provenance" in found}
    kind = kinds.get("op", next(iter(kinds.values()), None))
    others = {name: found for name, found in kinds.items() if found != kind}
    rows = {name: [] if name in others else found.get("rows", []) for name, found in sections.items()}
    op = {
        (row["case"], row["dtype"], row["implementation"], row["what"]): row
        for row in rows["op"]
        if "microseconds" in row
    }
    attention = []
    for (case, dtype, implementation, what), row in op.items():
        if implementation == "triton":
            same = {"case": case, "dtype": dtype, "what": what}
            peers = [r for r in rows["peers"] if "microseconds" in r and all(r.get(k) == v for k, v in same.items())]
            times = {r["peer"]: r["microseconds"] for r in peers}
            if xla := op.get((case, dtype, "xla", what)):
                times["xla"] = xla["microseconds"]
            ratios = {peer: round(time / row["microseconds"], 2) for peer, time in times.items()}
            floor = row.get("times_the_floor")
            attention.append(
                same | {"microseconds": row["microseconds"], "times_the_floor": floor, "faster_than": ratios}
            )
    speed = {
        f"{row.get('peer') or row['model'] + ' ' + row['implementation']}, {row['what']}": row["images_per_second"]
        for row in [*rows["models"], *rows["peers"]]
        if "images_per_second" in row
    }
    shares = attention_shares(rows["models"], op)
    passed = sections["numerics"].get("passed") if "numerics" not in others else None
    lines = [f"{name} is of {found}, not of {kind}: it is not compared." for name, found in others.items()]
    lines += [f"numerics: {'passed' if passed else 'FAILED'}"] if passed is not None else []
    lines += [f"{row['what']}, {row['case']}, {row['dtype']}: {row['microseconds']} us, {row['times_the_floor']} times the "
              f"floor; times as fast as {row['faster_than']}" for row in attention]  # fmt: skip
    lines += [f"{name}: {value} images/s" for name, value in speed.items()]
    lines += [f"{name}: {share:.0%} of the time is attention's" for name, share in shares.items()]
    found = {"device": kind, "not_compared": others, "numerics_passed": passed}
    return found | {"attention": attention, "images_per_second": speed, "attention_share": shares}, "\n".join(lines)


def attention_shares(models: list[dict[str, Any]], op: Mapping[tuple, dict[str, Any]]) -> dict[str, float]:
    """Returns the share of a model's time that its attention takes alone: the op's times over the model's."""
    shares = {}
    for row in models:
        if row["implementation"] != "triton" or "milliseconds" not in row:
            continue
        config, what = natjax.get_config(row["model"]), "forward" if row["what"] == "inference" else "both"
        layers = [(level + 1, d) for level in range(config.num_levels) for d in config.layer_dilations(level)]
        names = [f"tiny level {level}{f' dilation {d}' * (d > 1)}" for level, d in layers]
        found = [op.get((name, "bfloat16", "triton", what)) for name in names]
        if all(found):
            attention = sum(r["microseconds"] for r in found if r)
            shares[f"{row['model']} {row['what']}"] = round(attention / row["milliseconds"] / 1e3, 3)
    return shares
