"""What the results say: tables in Markdown, and a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any


def markdown(results: dict[str, Any]) -> str:
    """Returns the tables of all parts that were measured."""
    blocks = [f"## {part}\n\n{TABLES[part](results[part])}" for part in TABLES if part in results]
    return "\n\n".join(blocks)


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws images per second."""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def floor_table(part: dict[str, Any]) -> str:
    rows = []
    for row in part["rows"]:
        cells = [row.get(peer, {}) for peer in ("xla", "torch")]
        rate = [c.get("gflops_per_second") or c.get("gigabytes_per_second") for c in cells]
        rows.append((row["name"], "GB/s" if row["kind"] == "copy" else "GFLOP/s", *rate, row.get("error", "")))
    return table(("", "unit", "XLA", "torch", ""), rows)


TABLES = {"floor": floor_table}
