"""The memory of a block of threads in `ptx`, and who may meet in it.

It is an error where two warps read and write the same byte of shared memory without a barrier in between, where a copy is read
before it was waited for, and where a byte is written while an asynchronous product (wgmma) may still read it. Such products read
shared memory by a way of their own, for which what threads wrote has to be fenced (NVIDIA's PTX ISA, under "Async Proxy").
"""

from __future__ import annotations

import itertools
import re

import numpy as np

REGION = 40  # bits of an address within an array
_NOBODY, _SEVERAL, _COPY = (
    0,
    -1,
    -2,
)  # instead of one warp, which count from 1; a copy is one that is not waited for yet


class Race(Exception):  # noqa: N818
    """What a warp finds in shared memory or in registers depends on which warp is faster, or how fast a GPU is."""


class Memory:
    """Memory of a block; what needs registers is of `ptx._Block`."""

    def __init__(self, threads, shared_bytes):
        self.shared = np.full(shared_bytes, 255, np.uint8)  # NaNs
        # For every byte of shared memory, by whom it was written and read since the last barrier.
        self.warp = (np.arange(threads) // 32 + 1).astype(np.int8)
        self.touched = {kind: np.full(shared_bytes, _NOBODY, np.int8) for kind in ("write", "read")}
        self.unfenced = np.zeros(shared_bytes, bool)  # written since the last fence
        self.in_use = np.zeros(shared_bytes, int)  # by how many asynchronous products
        self.copies = [[]]

    def address(self, operand):
        """Returns addresses in 64 bits, of a register plus a number."""
        name, offset = re.fullmatch(r"\[\s*(\S+?)\s*(?:\+\s*(-?\d+)\s*)?\]", operand).groups()
        value = self.special[name] if name in self.special else self.registers[name]
        return value.astype(np.int64) + int(offset or 0)

    def _memory(self, space, kind, operand, size):
        """Returns memory, and the places in it of as many bytes of every active thread, [threads, bytes]."""
        address = self.address(operand)[self.active, None] + np.arange(size)
        assert not (address[:, 0] % size).any(), "addresses are no multiples of what is accessed"
        if space == "shared":
            self.touch(kind, address, self.warp[self.active, None])
            return self.shared, address
        regions = np.unique(address >> REGION)
        assert len(regions) <= 1, "addresses of one instruction are in several arrays"
        return self.arrays[int(regions[0])] if len(regions) else self.shared, address & (2**REGION - 1)

    def touch(self, kind, places, warp):
        """Notes that warps read or write bytes of shared memory."""
        for other in ("write", "read") if kind == "write" else ("write",):
            whose = self.touched[other][places]
            if ((whose != _NOBODY) & (whose != warp)).any():
                raise Race(f"a warp {kind}s what another one {other}s, with no barrier in between")
        if kind == "write":
            if self.in_use[places].any():
                raise Race("a warp writes what a product may still read")
            self.unfenced[places] = True
        whose = self.touched[kind][places]
        others = (whose != _NOBODY) & (whose != warp)  # other readers
        self.touched[kind][places] = np.where(others, _SEVERAL, warp)

    def pass_barrier(self):
        """Notes that all warps met, so that none of them is still at what it did before; copies may be."""
        for whose in self.touched.values():
            whose[whose != _COPY] = _NOBODY

    def begin_reading(self, places):
        """Notes that an asynchronous product of all warps reads bytes from now on."""
        self.touch("read", places, _SEVERAL)
        if self.unfenced[places].any():
            raise Race("a product reads what a warp wrote, with no fence.proxy.async in between")
        self.in_use[places] += 1

    def end_reading(self, places):
        """Notes that it does so no longer."""
        self.in_use[places] -= 1
        self.touched["read"][places] = _SEVERAL

    def op_fence(self, kind):
        assert kind == ["proxy", "async", "shared"]
        assert self.all_active
        self.unfenced[:] = False

    def op_ld(self, kind, out, operand):
        if kind[0] == "param":
            self.set(out, np.broadcast_to(self.parameters[operand.strip("[]")], self.threads))
            return
        registers, width = re.findall(r"%\w+", out), int(kind[-1][1:]) // 8
        memory, places = self._memory(kind[0], "read", operand, width * len(registers))
        words = memory[places].view(f"u{width}")
        for register, word in zip(registers, words.T, strict=True):
            value = np.zeros(self.threads, word.dtype)
            value[self.active] = word
            self.set(register, value)

    def op_st(self, kind, operand, values):
        words = np.stack(self.parts(values, kind[-1]), axis=1)[self.active]
        memory, places = self._memory(kind[0], "write", operand, words.itemsize * words.shape[1])
        memory[places] = np.ascontiguousarray(words).view(np.uint8)

    def op_cp(self, kind, *operands):
        if kind[1] == "commit_group":
            self.copies.append([])
        elif kind[1] == "wait_group":
            *groups, open_group = self.copies
            done = max(0, len(groups) - int(operands[0]))
            for target, values, warp in itertools.chain.from_iterable(groups[:done]):
                self.shared[target] = values
                self.touched["write"][target] = warp
                self.unfenced[target] = True
            self.copies = [*groups[done:], open_group]
        else:
            shared, source, size, *read = operands  # read: how many bytes of them, before zeros
            some = self.get(read[0] if read else size, "u32")
            _, target = self._memory("shared", "write", shared, int(size, 16))
            values = np.zeros(target.shape, np.uint8)
            every, self.active = self.active, self.active & (some > 0)  # addresses of nothing are not used
            memory, places = self._memory("global", "read", source, int(size, 16))
            values[self.active[every]] = memory[places]
            self.active = every
            values = np.where(np.arange(int(size, 16)) < some[every, None], values, 0)
            self.touched["write"][target] = _COPY
            self.copies[-1].append((target, values, self.warp[self.active, None]))
