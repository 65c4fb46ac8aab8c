"""How the programs of a kernel share the work of a map, and what that makes of its tables and sums in memory.

A program takes a run of tiles of one class, one head and a share of the batch. Each program sums the gradient of the table on
chip, and XLA sums over programs, so the parts of it in memory are as many as the programs.
"""

from __future__ import annotations

import dataclasses
import math

from natjax_kernels.fused.configurations import Config
from natjax_kernels.fused.layout import Sizes

PROGRAMS = 1024  # that fill a GPU


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The schedule of one kernel on one layout.

    Attributes:
        sizes: of the layout.
        config: how the work is cut.
    """

    sizes: Sizes
    config: Config

    @property
    def chunks(self) -> int:
        """Chunks of a block."""
        return math.ceil(self.sizes.block / self.config.chunk)

    @property
    def parts(self) -> int:
        """Programs that share the table's gradient of a run: one that holds it all, or one for every chunk of a halo."""
        return 1 if self.config.resident else self.chunks * self.sizes.blocks

    def shares(self, batch: int, programs: int) -> tuple[int, int]:
        """Returns the tiles of the longest run and the entries of the batch that a program takes, with `programs` to each.

        Programs work as long as they can on one class of tiles while there are enough of them; batch entries come first, as
        the addresses of a tile are the same in all of them.
        """
        items = max(1, self.sizes.tiles * programs * batch // PROGRAMS)
        share = math.ceil(batch / math.ceil(batch / items))  # the same to all, as far as possible
        return max(1, items // share), share

    def table(self, bias_heads: int) -> tuple[int, int, int, int]:
        """Returns the shape of the table, [rows, N or 1, T, S]."""
        return self.sizes.rows, bias_heads, self.config.slots, self.chunks * self.config.chunk

    def sums(self, batch: int, heads: int) -> tuple[int, ...]:
        """Returns the shape of what programs write of the table's gradient.

        [shares of the batch, runs, parts, N, chunks held, T, K].
        """
        longest, share = self.shares(batch, heads * self.parts)
        runs = sum(math.ceil(tiles / longest) for tiles in self.sizes.class_tiles)
        held = self.chunks if self.config.resident else 1
        return math.ceil(batch / share), runs, self.parts, heads, held, self.config.slots, self.config.chunk

    def largest_array(self, batch: int, bias_heads: int, *, sums: bool) -> int:
        """Returns the bytes of the largest array that is made of the bias or, where `bias_heads` is 0, of the mask.

        It is the table (a mask is of 16 bits), its float32 gradient or, where the kernel `sums` it, the parts of that.
        """
        if not bias_heads:
            return 2 * math.prod(self.table(1))
        return 4 * max(math.prod(self.table(bias_heads)), math.prod(self.sums(batch, bias_heads)) if sums else 0)
