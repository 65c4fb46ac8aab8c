"""Matrices of a block of threads in `ptx`: in shared memory, in registers, and their products.

Who holds what of a matrix is in NVIDIA's PTX ISA, under "mma", "ldmatrix", "stmatrix" and "wgmma". The four warps of a product by
wgmma go on while it is computed: until they wait for it, its registers are not to be set, and what it sets are NaN.
"""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
from ptx_memory import Race

HALVES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "bf16x2": ml_dtypes.bfloat16, "f16x2": np.float16}
_LANE = np.arange(32)
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4  # rows and pairs of columns of a matrix that a lane holds
_SWIZZLES = {1: 128, 2: 64, 3: 32}  # bytes of a row in shared memory, by a descriptor's mode


class Matrices:
    """Matrices of a block; what needs registers is of `ptx._Block`, what needs memory of `ptx_memory.Memory`."""

    def __init__(self):
        self.changed = set()  # registers, since the last wgmma.fence
        self.held = {}  # registers that a product under way reads, or writes (its value)
        self.issued, self.committed = [], []  # products: their registers and what they read

    def hold(self, name):
        """Notes that an instruction sets a register."""
        if name in self.held:
            raise Race(f"{name} is set while a product may still use it")
        self.changed.add(name)

    def rename(self, new, old):
        """Copies a register, if that is but another name to the assembler: a product under way sets it, or a fence was since.

        Compilers copy what a product reads and sets, right before and after it.
        """
        if self.held.get(old) is None:
            if old in self.changed or not self.all_active or old not in self.registers:
                return False
            self.hold(new)
            self.registers[new] = self.registers[old]
            self.changed.discard(new)
            return True
        self.hold(new)
        self.held[new], self.registers[new] = self.held[old], self.registers[old]
        next(product for product, *_ in self.issued + self.committed if old in product).append(new)
        return True

    def _matrices(self, kind, access, operand):
        """Returns where matrices of 8 x 8 numbers of 16 bits are, [warps, matrices, 8 rows, 16 bytes].

        Lane i says where row i % 8 of matrix i // 8 is.
        """
        assert kind[:3] == ["sync", "aligned", "m8n8"]
        assert self.all_active
        count = int(kind[3][1:])
        places = (self.address(operand)[:, None] + np.arange(16)).reshape(-1, 32, 16)[:, : 8 * count]
        self.touch(access, places, self.warp[::32, None, None])
        return places.reshape(-1, count, 8, 16)

    def op_ldmatrix(self, kind, out, operand):
        """Lane 4 i + j gets numbers 2 j and 2 j + 1 of row i, or of column i."""
        matrices = self.shared[self._matrices(kind, "read", operand)].view(np.uint16)
        if "trans" in kind:
            matrices = matrices.swapaxes(2, 3)
        pairs = np.ascontiguousarray(matrices).view(np.uint32)
        for i, register in enumerate(re.findall(r"%\w+", out)):
            self.set(register, pairs[:, i].reshape(-1))

    def op_stmatrix(self, kind, operand, values):
        places = self._matrices(kind, "write", operand)
        numbers = np.stack([x.reshape(-1, 8, 4) for x in self.parts(values)], axis=1).view(np.uint16)
        numbers = numbers.swapaxes(2, 3) if "trans" in kind else numbers
        self.shared[places] = np.ascontiguousarray(numbers).view(np.uint8)

    def _blocks(self, operand, kind):
        """Returns what each register of an operand holds: 8 rows of 16 bytes, [warps, 8, 8 or 4]."""
        return [_numbers(part.reshape(-1, 8, 4), kind) for part in self.parts(operand)]

    def _rows(self, operand, kind):
        """Returns the left matrix of every warp from registers, [warps, 16, 16 or 8]."""
        a0, a1, a2, a3 = self._blocks(operand, kind)
        return np.concatenate([np.concatenate([a0, a2], 2), np.concatenate([a1, a3], 2)], 1)

    def op_mma(self, kind, out, a, b, c):
        """[16, 16 or 8] times [16 or 8, 8] of every warp, into float32."""
        assert kind[2] in ("m16n8k16", "m16n8k8")
        assert kind[3:5] == ["row", "col"]
        assert self.all_active
        left, right = (
            self._rows(a, kind[-2]),
            np.concatenate(self._blocks(b, kind[-2]), 2),
        )  # [warps, 8 columns, 16 or 8]
        product = _by_register(left @ right.swapaxes(1, 2))
        for register, value, start in zip(re.findall(r"%\w+", out), product, self.parts(c, "f32"), strict=True):
            self.set(register, value + start)

    def op_wgmma(self, kind, *operands):
        assert self.all_active
        if kind[0] == "fence":
            self.changed.clear()
        elif kind[0] == "commit_group":
            self.committed += self.issued
            self.issued = []
        elif kind[0] == "wait_group":
            assert operands == ("0",)
            for product, inputs, places in self.committed:
                for register in {*product, *inputs} & {*self.held}:
                    value = self.held.pop(register)
                    if register in product:
                        self.registers[register] = value
                self.end_reading(places)
            self.committed = []
        else:
            self._multiply(kind, *operands)

    def _multiply(self, kind, out, a, b, accumulate, scale_a, scale_b, *transposed):
        """[64, 16 or 8] times [16 or 8, columns] of every four warps, into float32."""
        assert kind[:3] == ["mma_async", "sync", "aligned"]
        assert (scale_a, scale_b) == ("1", "1")
        columns = int(re.fullmatch(r"m64n(\d+)k(16|8)", kind[3])[1])
        outputs, inputs = re.findall(r"%\w+", out), []
        right, read = self._described(b, columns, kind[-1], transposed[-1:] == ("1",))
        if a.startswith("{"):
            inputs = re.findall(r"%\w+", a)
            if self.changed & {*inputs}:
                raise Race("a product uses registers that were set after the last wgmma.fence")
            left = self._rows(a, kind[-2])
            left = left.reshape(-1, 64, left.shape[-1])
        else:
            left, more = self._described(a, 64, kind[-2], transposed[:-1] == ("1",))
            read = np.concatenate([read, more], axis=None)
        self.begin_reading(read)
        product = left @ right.swapaxes(1, 2)
        product = _by_register(product.reshape(-1, 16, columns))
        starts = [self.held.get(x) for x in outputs]  # of the products before this one
        if self.get(accumulate, "pred").any():
            if self.changed & {x for x, start in zip(outputs, starts, strict=True) if start is None}:
                raise Race("a product adds to registers that were set after the last wgmma.fence")
            for value, register, start in zip(product, outputs, starts, strict=True):
                value += (self.get(register, "b32") if start is None else start).view(np.float32)
        for register, value in zip(outputs, product, strict=True):
            self.held[register] = value.view(np.uint32)
            self.registers[register] = np.full(self.threads, 2**32 - 1, np.uint32)  # NaN until it is waited for
        self.held |= dict.fromkeys(inputs)
        self.issued.append((outputs, inputs, read))

    def _described(self, descriptor, rows, kind, transposed):
        """Returns a matrix of rows of 32 bytes and where it is in shared memory, for every four warps.

        Bits of a descriptor: start from 0, offsets of the next row of tiles from 16 and 32, all over 16; mode from 62. A tile
        is 8 rows of numbers, or of columns where they are transposed; in each, 16 bytes are exchanged by its place.
        """
        value = self.get(descriptor, "b64").reshape(-1, 128)
        assert (value == value[:, :1]).all(), "warps describe different matrices"
        value = value[:, 0, None, None].astype(np.int64)
        start, leading, stride = (value >> shift << 4 & 0x3FFF0 for shift in (0, 16, 32))
        mode = {int(x) for x in (value >> 62 & 3).flat}
        assert len(mode) == 1
        assert not (value >> 49 & 7).any(), "tiles do not start where their pattern does"
        side = _SWIZZLES[mode.pop()]
        if transposed:  # [32 bytes of numbers, rows]: rows of a tile are of as many numbers as it has bytes for
            across = 2 * np.arange(rows)[:, None, None]
            along = np.arange(16)[:, None]
            places = start[..., None] + across // side * leading[..., None] + along // 8 * stride[..., None]
            places = places + along % 8 * side + across % side + np.arange(2)
            places = places.reshape(-1, rows, 32)
        else:
            row, byte = np.arange(rows)[:, None], np.arange(32)
            places = start + row // 8 * stride + row % 8 * side + byte
        places ^= places >> 3 & side - 16
        words = np.ascontiguousarray(self.shared[places]).view(np.uint32)
        return _numbers(words, kind), places


def _numbers(words, kind):
    """Returns the numbers in words of 32 bits, along the last axis, in float32; of TF32 it takes the upper 19 bits."""
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)
    return words.view(np.uint16).view(HALVES[kind]).astype(np.float32)


def _by_register(product):
    """Returns what the lanes of every warp hold of [warps, 16, columns], a register each."""
    registers = []
    for i in range(product.shape[-1] // 2):
        rows, columns = _GROUP + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * _IN_GROUP + i % 2
        registers.append(product[:, rows, columns].reshape(-1))
    return registers
