"""What the results say: tables in Markdown, and a picture."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cpu.targets import targets

WIDTH, MARGIN, LABEL, LINE = 900, 24, 170, 24  # pixels
BUSY = 0.5  # load average of a machine on which others compute
SHOWN = 6  # rows that are named per reason why they have no figures
LABELS = ("kind", "name", "group", "shape", "kernel_size", "dilation", "model", "batch", "what", "entrant", "repeat")
INK, OURS, THEIRS = "#1b1f24", "#c2410c", "#9aa4af"


def markdown(results: dict[str, Any]) -> str:
    """Returns the tables of all parts that were measured, and what they lack."""
    blocks = [section(part, results[part]) for part in TABLES if part in results]
    return "\n\n".join([*blocks, f"## targets\n\n{targets_table(results)}"])


def section(name: str, part: dict[str, Any]) -> str:
    """Returns a part's table between what casts doubt on it and what is not in it."""
    load = part.get("load_before_run", 0.0)
    busy = f"**Load of the machine before the run: {load:.1f}.** Others computed on it: times and ratios mislead."
    return "\n\n".join(
        filter(None, (f"## {name}", busy if load > BUSY else "", TABLES[name](part), complaints(part), ending(part)))
    )


def targets_table(results: dict[str, Any]) -> str:
    rows = [
        (t.name, f"{'>=' if t.at_least else '<='} {t.wanted:g}", t.got and round(t.got, 2), t.verdict)
        for t in targets(results)
    ]
    return table(("target", "wanted", "got", ""), rows)


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws images per second of the models as bars, a group per case."""
    groups: dict[tuple[Any, ...], list[tuple[str, float]]] = {}
    for row in results.get("models", {}).get("rows", []):
        if row["kind"] == "time" and "images_per_second" in row:
            groups.setdefault((row.get("case"), *key(row)[:3]), []).append((row["entrant"], row["images_per_second"]))
    if not groups:
        return
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    lines = sum(len(bars) + 2 for bars in groups.values())
    picture = PIL.Image.new("RGB", (WIDTH, lines * LINE + 2 * MARGIN), "white")
    pen = PIL.ImageDraw.Draw(picture)
    font, small = PIL.ImageFont.load_default(18), PIL.ImageFont.load_default(15)
    y = MARGIN
    for (_, model, batch, what), bars in groups.items():
        pen.text((MARGIN, y), f"{model}, batch {batch}, {what}: images per second", INK, font)
        y += LINE + 4
        most = max(speed for _, speed in bars)
        for entrant, speed in sorted(bars, key=lambda bar: -bar[1]):
            pen.text((MARGIN, y), entrant, INK, small)
            length = (WIDTH - LABEL - 3 * MARGIN - 40) * speed / most
            ink = OURS if entrant == "natjax" else THEIRS
            pen.rectangle((MARGIN + LABEL, y + 2, MARGIN + LABEL + length, y + LINE - 6), fill=ink)
            pen.text((MARGIN + LABEL + length + 8, y), f"{speed:.1f}", INK, small)
            y += LINE
        y += LINE - 4
    picture.save(path, optimize=True)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def floor_table(part: dict[str, Any]) -> str:
    rows = []
    for row in part["rows"]:
        cells = [row.get(peer, {}) for peer in ("xla", "torch")]
        rate = [c.get("gflops_per_second") or c.get("gigabytes_per_second") for c in cells]
        if any(rate):
            rows.append((row["name"], "GB/s" if row["kind"] == "copy" else "GFLOP/s", *rate))
    return table(("", "unit", "XLA", "torch"), rows)


def parts_table(part: dict[str, Any]) -> str:
    rows, sums = [], []
    for row in part["rows"]:
        if row["kind"] == "sum":
            share = ", ".join(f"{kind} {value:.0%}" for kind, value in row["share_of_parts"].items())
            sums.append(
                f"Batch {row['batch']}: the whole model takes {row['whole_milliseconds']} ms, its parts alone "
                f"{row['parts_milliseconds']} ms ({share}), its layers alone {row['layers_milliseconds']} ms."
            )
        elif "milliseconds" in row:
            speed = (
                row.get(k) for k in ("gflops_per_second", "floor_gflops_per_second", "of_floor", "gigabytes_per_second")
            )
            rows.append(
                (row["name"], row["batch"], row["count"], row["milliseconds"], row["total_milliseconds"], *speed)
            )
    head = ("part", "batch", "count", "ms", "all of them ms", "GFLOP/s", "floor GFLOP/s", "of floor", "GB/s")
    return "\n\n".join([table(head, rows), *sums])


def step_table(part: dict[str, Any]) -> str:
    rows = []
    for row in part["rows"]:
        if "compile_seconds" in row:
            compiled = row["compile_seconds"], round(row["memory_bytes"] / 1e6)
            times = [row[which]["milliseconds"] for which in ("without", "whole") if which in row] or ["", ""]
            rows.append((row["name"], *times, f"{row['share']:.0%}" if "share" in row else "", *compiled))
    return table(("part", "step without it, ms", "whole step, ms", "share", "compile s", "memory MB"), rows)


def op_table(part: dict[str, Any]) -> str:
    rows = [
        (
            row["group"],
            "x".join(map(str, row["shape"])),
            row["kernel_size"],
            row["dilation"],
            *(
                row[what][name]
                for what in ("forward", "both")
                for name in ("milliseconds", "nanoseconds_per_token", "temporary_bytes_per_token")
            ),
        )
        for row in part["rows"]
        if "forward" in row
    ]
    speed = ("ms", "ns per token", "bytes per token")
    head = ("group", "shape", "kernel", "dilation", *speed, *(f"with backward {name}" for name in speed))
    return table(head, rows)


def start_table(part: dict[str, Any]) -> str:
    starts: dict[str, list[float]] = {}
    memory = []
    for row in part["rows"]:
        if row["kind"] == "start" and "seconds" in row:
            starts.setdefault(row["entrant"], []).append(row["seconds"])
        elif "peak_megabytes" in row:
            memory.append((*key(row), row["peak_megabytes"]))
    first = [(entrant, statistics.median(seconds)) for entrant, seconds in starts.items()]
    return (
        table(("process start to first logits", "s"), first)
        + "\n\n"
        + table(("model", "batch", "what", "entrant", "peak memory MB"), memory)
    )


def models_table(part: dict[str, Any]) -> str:
    first = {(row.get("case"), *key(row)): row for row in part["rows"] if row["kind"] == "first call"}
    rows = []
    for row in part["rows"]:
        if row["kind"] == "time" and "milliseconds" in row:
            rows.append(
                (
                    *key(row),
                    row["milliseconds"],
                    row["p95_milliseconds"],
                    row["images_per_second"],
                    row["images_per_second_per_gflop"],
                    row["ratio"],
                    first[row.get("case"), *key(row)].get("seconds"),
                )
            )
    head = ("model", "batch", "what", "entrant", "median ms", "p95 ms", "images/s", "images/s per GMAC")
    return table((*head, "natjax is faster by", "first call s"), rows)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what a row of the models is about."""
    return row["model"], row["batch"], row["what"], row["entrant"]


def complaints(part: dict[str, Any]) -> str:
    """Returns a line for each reason why something has no figures: it failed, was skipped or had no time."""
    found: dict[str, list[str]] = {}
    for row in part["rows"]:
        if reason := row.get("error") or row.get("skipped"):
            found.setdefault(" ".join(reason.split()), []).append(about(row))
    lines = []
    for reason, whats in found.items():
        more = [f"and {len(whats) - SHOWN} more"] if len(whats) > SHOWN else []
        lines.append(f"- {reason}: {'; '.join(whats[:SHOWN] + more)}")
    return "\n".join(lines)


def about(row: dict[str, Any]) -> str:
    """Returns what a row is about in words."""
    words = []
    for label in LABELS:
        value = row.get(label)
        if isinstance(value, int):
            words.append(f"{label.replace('_', ' ')} {value}")
        elif value is not None:
            words.append(value if isinstance(value, str) else "x".join(map(str, value)))
    return ", ".join(words)


def ending(part: dict[str, Any]) -> str:
    """Returns how a part ended that is not complete, with the end of its output where its process failed."""
    if part.get("status", "complete") == "complete":
        return ""
    output = f" The end of its output:\n\n```\n{part['output'].strip()}\n```" if part.get("output") else ""
    return f"**This part is not complete: {part['status']}.**{output}"


TABLES = {
    "floor": floor_table,
    "parts": parts_table,
    "step": step_table,
    "op": op_table,
    "start": start_table,
    "models": models_table,
}
