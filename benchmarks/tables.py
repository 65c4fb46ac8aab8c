"""What the results say: tables in Markdown, and a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

BUSY = 0.5  # load average of a machine on which others compute
SHOWN = 6  # rows that are named per reason why they have no figures
_CASE = "model batch what entrant"
_OP = "{0}.milliseconds {0}.nanoseconds_per_token {0}.temporary_bytes_per_token"
_DENSE = [
    f"{_CASE} milliseconds p95_milliseconds images_per_second ratio",
    f"{_CASE} seconds peak_megabytes",
]
# Columns of a section's tables: fields of a row, those of a dict in it by a dot. A row is in a table whose last column it has.
TABLES = {
    "floor": [
        "name torch.gflops_per_second xla.gflops_per_second",
        "name torch.gigabytes_per_second xla.gigabytes_per_second",
    ],
    "parts": [
        "name batch count gflops_per_second of_floor milliseconds total_milliseconds",
        "batch whole_milliseconds parts_milliseconds layers_milliseconds share_of_parts",
    ],
    "step": ["name without.milliseconds whole.milliseconds share memory_bytes compile_seconds"],
    "start": ["entrant repeat seconds", f"{_CASE} peak_megabytes"],
    "numerics": ["call dtype passed"],
    "kernels": [
        "case kernel config microseconds times_the_floor predicted_at_least predicted_at_most largest_error",
    ],
    # On a CPU and on a GPU.
    "op": [
        f"group shape kernel_size dilation {_OP.format('forward')} {_OP.format('both')}",
        "case dtype implementation what microseconds floor_microseconds times_the_floor",
    ],
    "models": [
        f"{_CASE} milliseconds p95_milliseconds images_per_second ratio_per_gflop ratio",
        f"{_CASE} seconds",
        "model what implementation milliseconds images_per_second peak_bytes",
    ],
    "segmentation": _DENSE,
    "detection": _DENSE,
    "scaling": ["case what microseconds times_the_floor temporary_bytes_per_token nanoseconds_per_token"],
    "peers": ["peer case dtype what microseconds", "peer what milliseconds images_per_second"],
}


def markdown(results: dict[str, Any]) -> str:
    """Returns the tables of all sections that were measured, and what they lack."""
    return "\n\n".join(section(name, results[name]) for name in TABLES if results.get(name))


def section(name: str, content: dict[str, Any]) -> str:
    """Returns a section's tables between what casts doubt on them and what is not in them."""
    load, status, origin = (content.get(key) for key in ("load_before_run", "status", "provenance"))
    blocks = [f"## {name}" + (f" ({origin['device']}, {origin['date'][:10]})" if origin else "")]
    if load and load > BUSY:
        blocks += [
            f"**Load of the machine before the run: {load:.1f}.** Others computed on it: times and ratios mislead."
        ]
    blocks += [table(columns.split(), content["rows"]) for columns in TABLES[name]]
    blocks += [f"{key}: {value}" for key, value in content.items() if "slowest_over_fastest" in key or key == "passed"]
    blocks += [complaints(content["rows"])]
    if status not in (None, "complete"):
        output = f" The end of its output:\n\n```\n{content['output'].strip()}\n```" if content.get("output") else ""
        blocks += [f"**This section is not complete: {content.get('reason', status)}.**{output}"]
    return "\n\n".join(filter(None, blocks))


def table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows that have the last column, nothing where none has."""

    def cell(row: dict[str, Any], column: str) -> str:
        for key in column.split("."):
            row = row.get(key, {})
        return "x".join(map(str, row)) if isinstance(row, list | tuple) else "" if row in ({}, None) else str(row)

    lines = [line for row in rows if (line := [cell(row, column) for column in columns])[-1]]
    head = [[column.replace("_", " ").replace(".", " ") for column in columns], ["---"] * len(columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in head + lines) if lines else ""


def complaints(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a line for each reason why something has no figures: it failed, was skipped or had no time."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if reason := row.get("error") or row.get("skipped"):
            labels = [f"{key} {value}" for key, value in row.items() if key not in ("error", "skipped", "took_seconds")]
            found.setdefault(" ".join(reason.split()), []).append(", ".join(labels))
    more = {reason: [f"and {len(whats) - SHOWN} more"] * (len(whats) > SHOWN) for reason, whats in found.items()}
    return "\n".join(f"- {reason}: {'; '.join(whats[:SHOWN] + more[reason])}" for reason, whats in found.items())


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws images per second of the models as bars, a group per case."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    groups: dict[tuple[int, str], dict[str, float]] = {}
    for row in results.get("models", {}).get("rows", []):
        if "images_per_second" in row:
            title = f"{row['model']}, batch {row['batch']}, {row['what']}: images per second"
            groups.setdefault((row["case"], title), {})[row["entrant"]] = row["images_per_second"]
    if not groups:
        return
    width, margin, left, line = 900, 24, 194, 24  # pixels
    picture = PIL.Image.new("RGB", (width, 2 * margin + line * sum(len(bars) + 2 for bars in groups.values())), "white")
    pen, y = PIL.ImageDraw.Draw(picture), margin
    font, small = PIL.ImageFont.load_default(18), PIL.ImageFont.load_default(15)
    for (_, title), bars in groups.items():
        pen.text((margin, y), title, "#1b1f24", font)
        y += line + 4
        for entrant, speed in sorted(bars.items(), key=lambda bar: -bar[1]):
            right = left + (width - left - 88) * speed / max(bars.values())
            pen.text((margin, y), entrant, "#1b1f24", small)
            pen.rectangle((left, y + 2, right, y + line - 6), fill="#c2410c" if entrant == "natjax" else "#9aa4af")
            pen.text((right + 8, y), f"{speed:.1f}", "#1b1f24", small)
            y += line
        y += line - 4
    picture.save(path, optimize=True)
