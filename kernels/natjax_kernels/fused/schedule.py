"""How the programs of a kernel share the work of a map, and what that makes of its tables and sums in memory.

A program takes a run of tiles of one class, one head and a share of the batch. Each program sums the gradient of the table on
chip, and XLA sums over programs, so the parts of it in memory are as many as the programs.

A GPU runs as many programs at a time as its multiprocessors hold: a wave. A last wave that is nearly empty takes as long as a
full one, so programs are as long as makes waves full.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from natjax_kernels.fused.configurations import Config
from natjax_kernels.fused.layout import Sizes

_START = 1  # what it takes to start a program (tables, first loads), in entries of the batch of one tile
_SLACK = 1.02  # times the shortest time: fewer programs have fewer sums in memory


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The schedule of one kernel on one layout.

    Attributes:
        sizes: of the layout.
        config: how the work is cut.
        multiprocessors: of the device.
    """

    sizes: Sizes
    config: Config
    multiprocessors: int

    @property
    def chunks(self) -> int:
        """Chunks of a block."""
        return math.ceil(self.sizes.block / self.config.chunk)

    @property
    def steps(self) -> int:
        """Chunks of a halo."""
        return self.chunks * self.sizes.blocks

    @property
    def parts(self) -> int:
        """Programs that share the table's gradient of a run: one that holds it all, or one for every chunk of a halo."""
        return 1 if self.config.resident else self.steps

    @functools.lru_cache(maxsize=512)  # noqa: B019 - of values, which are small
    def shares(self, batch: int, programs: int) -> tuple[int, int]:
        """Returns the tiles of the longest run and the entries of the batch that a program takes, with `programs` to each.

        Batch entries come first, as the addresses of a tile are the same in all of them: a run of several tiles has them all. Of
        all that take about as long as the quickest, it is the one with the fewest programs.
        """
        runs = [(longest, batch) for longest in _even(max(self.sizes.class_tiles))]
        times = {one: self._time(*one, batch, programs) for one in runs + [(1, share) for share in _even(batch)]}
        longest_time = _SLACK * min(times.values())
        return next(one for one, time in times.items() if time <= longest_time)

    def _time(self, longest: int, share: int, batch: int, programs: int) -> float:
        """Returns how long a GPU takes at most: in waves of programs as long as the longest, or of all kinds in any order."""
        launched = self._runs(longest) * programs * math.ceil(batch / share)
        work = self.sizes.tiles * programs * batch + launched * _START
        at_a_time, slowest = self.config.programs * self.multiprocessors, longest * share + _START
        return min(math.ceil(launched / at_a_time) * slowest, (work + slowest * (at_a_time - 1)) / at_a_time)

    def _runs(self, longest: int) -> int:
        return sum(math.ceil(tiles / longest) for tiles in self.sizes.class_tiles)

    def table(self, bias_heads: int) -> tuple[int, int, int, int]:
        """Returns the shape of the table, [rows, N or 1, T, S]."""
        return self.sizes.rows, bias_heads, self.config.slots, self.chunks * self.config.chunk

    def sums(self, batch: int, heads: int) -> tuple[int, ...]:
        """Returns the shape of what programs write of the table's gradient.

        [shares of the batch, runs, parts, N, chunks held, T, K].
        """
        longest, share = self.shares(batch, heads * self.parts)
        held = self.chunks if self.config.resident else 1
        return (
            math.ceil(batch / share),
            self._runs(longest),
            self.parts,
            heads,
            held,
            self.config.slots,
            self.config.chunk,
        )

    def largest_array(self, batch: int, bias_heads: int, *, sums: bool) -> int:
        """Returns the bytes of the largest array that is made of the bias or, where `bias_heads` is 0, of the mask.

        It is the table (a mask is of 16 bits), its float32 gradient or, where the kernel `sums` it, the parts of that.
        """
        if not bias_heads:
            return 2 * math.prod(self.table(1))
        return 4 * max(math.prod(self.table(bias_heads)), math.prod(self.sums(batch, bias_heads)) if sums else 0)


def _even(length: int) -> list[int]:
    """Returns the sizes of the parts that a length can be cut into evenly, as far as possible, the largest first."""
    root = math.isqrt(length)
    return sorted({*range(1, root + 1), *(math.ceil(length / parts) for parts in range(1, root + 1))}, reverse=True)
