"""What the tables of `natjax eval` have in common."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from natjax.atomic import replacing
from natjax.cli._output import complain
from natjax.text import counted


def finite(value: Any) -> Any:
    """Returns a value as JSON and CSV can hold it: None for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(value: float) -> str:
    """Returns a part as text, "-" where there is none: the precision of a class that nothing was taken for."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def write_csv(path: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table of all classes."""
    # A name that is no UTF-8 is written with its bytes escaped, as it is printed: the file can be read by anything.
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(["" if finite(value) is None else value for value in row] for row in rows)


def relabelled(batches: Iterable[dict[str, Any]], table: Any) -> Iterator[dict[str, Any]]:
    """Yields batches whose labels, class numbers of the data, are those that a table has for them: the model's."""
    for batch in batches:
        yield {**batch, "label": table[batch["label"]]}


def tell_skipped(count: int) -> None:
    """Prints on stderr how many images were not counted, where there are any."""
    if count:
        complain(f"{counted(count, 'image')} could not be read and {'is' if count == 1 else 'are'} not counted")
