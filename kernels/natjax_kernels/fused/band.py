"""The band design of the forward kernel: a tile of 8 x 8 queries, and a box of keys of which each warp multiplies its own band.

For 2-D windows of small kernels, without dilation. The keys that a tile sees are within a box of 16 columns, which is in shared
memory once. A warp takes two rows of queries, and of the box only the band of rows that these two see: for kernel 7, 8 rows of
16, and 38 % of the scores belong to a window, where it is 25 % of those of a whole 8 x 8 tile and its halo.

Two rows of the box are a **position**, the unit that bands begin and end at: warp w reads positions w to w + P - 1, so that every
warp's products are of one shape, at places that differ by a constant. Windows that a border shifts inward would see rows that
are not in the band, while positions beyond the border hold none: those positions hold the missing rows instead. So borders
are data: rows of the box by tile, and the table of bias-or-minus-infinity.

Letters: P positions of a band, T = 64 queries of a tile, S = 32 P slots of a band.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np

from natjax_kernels.fused.configurations import Case, Config, little_shared_memory
from natjax_kernels.window import AxisWindow, Window, windows

TILE = 8  # rows and columns of a tile: four warps with two rows of eight queries, the 16 rows of a matrix product
COLUMNS = 16  # of a box
WARPS = TILE // 2
_CHANNELS = {16: 7, 32: 7, 64: 5}  # of a head; the largest kernel whose scores and table fit in registers beside them
_DTYPES = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True, eq=False)
class Band:
    """What the band kernel knows of a map.

    Attributes:
        tiles: [tiles, 6] int32: first query, first column of the box, class, which row of `box_rows`, and the first of the box's
            columns that a query of the tile sees, and the one after the last.
        box_rows: [rows of tiles, 2 * (P + 3)] int32: the rows of the map that a box holds.
        relative: of rows [classes, 8, 2 P] and of columns [classes, 8, 16], which make the table
            [classes, N or 1, T, S] (`natjax_kernels.bias`): slots of rows are of the query's own band.
        positions: of a band, P.
    """

    tiles: np.ndarray
    box_rows: np.ndarray
    relative: list[np.ndarray]
    positions: int


def configurations(case: Case) -> list[Config]:
    """Returns the configurations that name the design for a case: with boxes of two batch entries in shared memory, or of one."""
    chunk = 32 * _positions(case.window.kernel_size[0])
    stages = (2, 1) if case.head_dim <= 32 else (1,)
    programs = [1 if n == 2 and little_shared_memory(case) else 2 for n in stages]
    make = functools.partial(Config, (TILE, TILE), None, chunk, True, WARPS, design="band")
    return [make(num_stages=n, programs=p) for n, p in zip(stages, programs, strict=True)]


def why_not(case: Case, config: Config) -> str | None:
    """Returns why the design cannot compute a case so, or None where it can."""
    window, rank = case.window, len(case.spatial)
    if case.values != case.head_dim or case.group > 1 or case.masked or case.capped:
        return "it needs as many heads and channels of queries, keys and values, no mask and no soft cap"
    if case.kernel != "fwd":
        return f"it is a forward kernel, and this is {case.kernel}"
    if window != Window(window.kernel_size, (1,) * rank, (1,) * rank, (False,) * rank) or rank != 2:
        return f"it is for 2-D windows without dilation, stride and causality; these are {window}"
    height, width = case.spatial
    if height % TILE or width % TILE or width < COLUMNS:
        return f"it needs sides that are multiples of {TILE}, the second at least {COLUMNS}; the map is {case.spatial}"
    if case.dtype not in _DTYPES:
        return f"it computes in {' and '.join(_DTYPES)}; this is {case.dtype}"
    largest = _CHANNELS.get(case.head_dim)
    if largest is None:
        return f"it takes heads of {', '.join(map(str, _CHANNELS))} channels; these have {case.head_dim}"
    if max(window.kernel_size) > largest:
        return f"it takes kernels of at most {largest} with {case.head_dim} channels; this one is {window.kernel_size}"
    if config not in configurations(case):
        return f"its configurations are {configurations(case)}; this one is {config}"
    return None


@functools.lru_cache(maxsize=256)
def band(spatial: tuple[int, ...], window: Window) -> Band:
    """Lays out a map in tiles and boxes; see the module's text and `why_not`."""
    (height, width), (kernel, columns) = spatial, window.kernel_size
    positions = _positions(kernel)
    box_rows, present = _boxes(height, kernel)
    first_columns = np.clip(np.arange(0, width, TILE) - columns // 2, 0, width - COLUMNS)

    # For every row of queries in a tile, the rows of its warp's band: [rows of tiles, 8, 2 P].
    own = 2 * (np.arange(TILE)[:, None] // 2) + np.arange(2 * positions)
    rows = np.where(present, box_rows, -1)[:, own]
    row_classes, of_row = np.unique(_relative(rows, height, kernel), axis=0, return_inverse=True)
    slots = np.broadcast_to((first_columns[:, None] + np.arange(COLUMNS))[:, None], (width // TILE, TILE, COLUMNS))
    column_classes, of_column = np.unique(_relative(slots, width, columns), axis=0, return_inverse=True)

    starts, ends = (edge.reshape(-1, TILE) - first_columns[:, None] for edge in windows(width, AxisWindow(columns)))
    seen = np.stack([starts.min(axis=1), ends.max(axis=1)], axis=1)

    tiles = [
        (TILE * (y * width + x), first_columns[x], of_row[y] * len(column_classes) + of_column[x], y, *seen[x])
        for y, x in itertools.product(range(height // TILE), range(width // TILE))
    ]
    return Band(np.asarray(tiles, np.int32), box_rows.astype(np.int32), [row_classes, column_classes], positions)


def _positions(kernel: int) -> int:
    """Returns the positions of a band: two neighbouring queries see kernel + 1 rows."""
    return (kernel + 2) // 2


def _boxes(height: int, kernel: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that the boxes of every row of tiles hold, [rows of tiles, 2 * (P + 3)], and whether they count.

    A position beyond a border holds the rows that lie one band further inside; half of one, some row that does not count.
    """
    band_rows = 2 * _positions(kernel)
    rows = np.arange(0, height, TILE)[:, None] - kernel // 2 + np.arange(band_rows + TILE - 2)
    pairs = rows.reshape(len(rows), -1, 2)
    shift = (pairs < 0).all(-1, keepdims=True).astype(int) - (pairs >= height).all(-1, keepdims=True)
    rows = (pairs + shift * band_rows).reshape(rows.shape)
    present = (rows >= 0) & (rows < height)
    return np.clip(rows, 0, height - 1), present


def _relative(keys: np.ndarray, length: int, kernel: int) -> np.ndarray:
    """Returns key minus query plus kernel - 1, -1 where the key is no neighbour, of keys [tiles, 8, slots] (-1: none)."""
    start, end = (edge.reshape(-1, TILE, 1) for edge in windows(length, AxisWindow(kernel)))
    query = np.arange(length).reshape(-1, TILE, 1)
    return np.where((keys >= start) & (keys < end), keys - query + kernel - 1, -1)
