"""What the results say: tables in Markdown, and a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

WIDTH, MARGIN, LABEL, LINE = 900, 24, 170, 24  # pixels
BUSY = 0.5  # load average of a machine on which others compute
SHOWN = 6  # rows that are named per reason why they have no figures
LABELS = ("kind", "name", "group", "shape", "kernel_size", "dilation", "model", "batch", "what", "entrant", "repeat")
INK, OURS, THEIRS = "#1b1f24", "#c2410c", "#9aa4af"
_CASE = "model batch what entrant"
_OP = "{0}.milliseconds {0}.nanoseconds_per_token {0}.temporary_bytes_per_token"
# Columns of a part's tables: fields of a row, those of a dict in it by a dot. A row is in a table whose last column it has.
TABLES = {
    "floor": [
        "name torch.gflops_per_second xla.gflops_per_second",
        "name torch.gigabytes_per_second xla.gigabytes_per_second",
    ],
    "parts": [
        "name batch count gflops_per_second floor_gflops_per_second of_floor gigabytes_per_second milliseconds"
        " total_milliseconds",
        "batch whole_milliseconds parts_milliseconds layers_milliseconds share_of_parts",
    ],
    "step": ["name without.milliseconds whole.milliseconds share memory_bytes compile_seconds"],
    "op": [f"group shape kernel_size dilation {_OP.format('forward')} {_OP.format('both')}"],
    "start": ["entrant repeat seconds", f"{_CASE} peak_megabytes"],
    "models": [
        f"{_CASE} milliseconds p95_milliseconds images_per_second images_per_second_per_gflop ratio_per_gflop ratio",
        f"{_CASE} seconds",
    ],
}


def markdown(results: dict[str, Any]) -> str:
    """Returns the tables of all parts that were measured, and what they lack."""
    return "\n\n".join(section(part, results[part]) for part in TABLES if part in results)


def section(name: str, part: dict[str, Any]) -> str:
    """Returns a part's tables between what casts doubt on them and what is not in them."""
    load, status = part.get("load_before_run", 0.0), part.get("status", "complete")
    blocks = [f"## {name}"]
    if load > BUSY:
        blocks += [
            f"**Load of the machine before the run: {load:.1f}.** Others computed on it: times and ratios mislead."
        ]
    blocks += [table(columns.split(), part["rows"]) for columns in TABLES[name]]
    blocks += [f"{key}: {part[key]}" for key in ("slowest_over_fastest",) if key in part]
    blocks += [complaints(part["rows"])]
    if status != "complete":
        output = f" The end of its output:\n\n```\n{part['output'].strip()}\n```" if part.get("output") else ""
        blocks += [f"**This part is not complete: {status}.**{output}"]
    return "\n\n".join(filter(None, blocks))


def table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows that have the last column, nothing where none has."""

    def cell(row: dict[str, Any], column: str) -> str:
        for key in column.split("."):
            row = row.get(key, {})
        return "x".join(map(str, row)) if isinstance(row, list | tuple) else "" if row in ({}, None) else str(row)

    cells = [[cell(row, column) for column in columns] for row in rows]
    lines = [[column.replace("_", " ").replace(".", " ") for column in columns], ["---"] * len(columns)]
    lines += [line for line in cells if line[-1]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(lines) > 2 else ""


def complaints(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a line for each reason why something has no figures: it failed, was skipped or had no time."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if reason := row.get("error") or row.get("skipped"):
            about = [f"{label} {row[label]}" for label in LABELS if row.get(label) is not None]
            found.setdefault(" ".join(reason.split()), []).append(", ".join(about))
    more = {reason: [f"and {len(whats) - SHOWN} more"] * (len(whats) > SHOWN) for reason, whats in found.items()}
    return "\n".join(f"- {reason}: {'; '.join(whats[:SHOWN] + more[reason])}" for reason, whats in found.items())


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws images per second of the models as bars, a group per case."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    groups: dict[tuple[Any, ...], list[tuple[str, float]]] = {}
    for row in results.get("models", {}).get("rows", []):
        if "images_per_second" in row:
            case = (row.get("case"), row["model"], row["batch"], row["what"])
            groups.setdefault(case, []).append((row["entrant"], row["images_per_second"]))
    if not groups:
        return
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
