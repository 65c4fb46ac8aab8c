"""Executes PTX on NumPy arrays, so that what Triton compiled for a GPU runs without one. Only what the band kernel needs is here.

The threads of a block take one instruction at a time, the first of those that any is at: they part at branches and meet again
after them. Every array is 2**40 bytes from the next, so that an offset out of bounds, or cut to 32 bits, is an error. So it is
where two warps read and write the same byte of shared memory without a barrier in between, or before a copy was waited for. Who
holds what of a matrix is in NVIDIA's PTX ISA, under "mma", "ldmatrix" and "stmatrix".
"""

from __future__ import annotations

import itertools
import operator
import re

import ml_dtypes
import numpy as np

_REGION = 40  # bits of an address within an array
_TYPES = {
    "s16": np.int16, "u16": np.uint16, "b16": np.uint16, "s32": np.int32, "u32": np.uint32, "b32": np.uint32, "f32": np.float32,
    "s64": np.int64, "u64": np.uint64, "b64": np.uint64, "pred": bool,
}  # fmt: skip
_HALVES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "bf16x2": ml_dtypes.bfloat16, "f16x2": np.float16}
_LANE = np.arange(32)
_SEVERAL = -1  # warps
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4  # rows and pairs of columns of a matrix that a lane holds


class Race(Exception):  # noqa: N818
    """What a warp finds in shared memory depends on which warp is faster."""


def run(text, grid, arguments, shared_bytes):
    """Runs the kernel of a PTX text over its grid; arguments are arrays, some of which it writes, and integers of 32 bits."""
    program, labels, parameters = _parse(text)
    threads = int(re.search(r"\.reqntid (\d+)", text)[1])
    arrays = {i + 1: x.reshape(-1).view(np.uint8) for i, x in enumerate(arguments) if isinstance(x, np.ndarray)}
    values = [np.uint64((i + 1) << _REGION) if i + 1 in arrays else np.uint32(x) for i, x in enumerate(arguments)]
    values += [np.uint64(0)] * (len(parameters) - len(values))  # scratch memory that is not there
    with np.errstate(all="ignore"):
        for block in itertools.product(*map(range, grid)):
            _Block(
                program, labels, dict(zip(parameters, values, strict=True)), arrays, block, threads, shared_bytes
            ).run()


def _parse(text):
    """Returns instructions (guard, opcode, operands), the places of labels, and the names of parameters."""
    entry = text[text.index(".visible .entry") :]
    body = re.sub(r"//.*", "", entry[entry.index("{") + 1 : entry.index("// -- End function")])
    program, labels = [], {}
    for line in map(str.strip, body.splitlines()):
        if label := re.fullmatch(r"(\$\w+):", line):
            labels[label[1]] = len(program)
        elif found := re.fullmatch(r"(?:@(!?%p\d+)\s+)?([a-z][\w.]*)\s*(.*);", line):
            guard, opcode, rest = found.groups()
            program.append((guard, opcode.split("."), re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)))
    return program, labels, re.findall(r"\.param \S+ .*?(\w+_param_\d+)", entry[: entry.index("{")])


class _Block:
    """The threads of a block, their registers and their shared memory."""

    def __init__(self, program, labels, parameters, arrays, block, threads, shared_bytes):
        self.program, self.labels, self.parameters, self.arrays = program, labels, parameters, arrays
        self.threads, self.active = threads, np.ones(threads, bool)
        self.at = np.zeros(threads, int)
        self.special = {"%tid.x": np.arange(threads, dtype=np.uint32), "global_smem": np.zeros(threads, np.uint32)}
        self.special |= {f"%ctaid.{axis}": np.full(threads, i, np.uint32) for axis, i in zip("xyz", block, strict=True)}
        self.registers = {}
        self.shared = np.full(shared_bytes, 255, np.uint8)  # NaNs
        # For every byte of shared memory, after which barrier it was last written and read, and by which warp.
        self.barriers, self.warp = 1, np.arange(threads) // 32
        self.touched = {kind: np.zeros((2, shared_bytes), int) for kind in ("write", "read")}
        self.copies = [[]]

    def run(self):
        while (self.at < len(self.program)).any():
            here = self.at.min()
            guard, opcode, operands = self.program[here]
            self.active = self.at == here
            self.at[self.active] += 1
            if guard:
                self.active = self.active & (self.get(guard.lstrip("!"), "pred") ^ guard.startswith("!"))
            getattr(self, f"op_{opcode[0]}")(opcode[1:], *operands)

    def get(self, name, kind):
        """Returns a register or a number, of every thread."""
        if kind == "f32x2":
            return self.get(name, "b64").view(np.float32)
        dtype = np.dtype(_TYPES[kind])
        if name.startswith("0f"):
            value = np.full(self.threads, int(name[2:], 16), np.uint32)
        elif re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)", name):
            return np.full(self.threads, int(name, 0)).astype(dtype)
        else:
            value = self._named(name) if name in self.special or name in self.registers else self._undefined(dtype)
        return value if dtype.kind == "b" else value.astype(f"u{dtype.itemsize}").view(dtype)

    def set(self, name, value):
        """Sets a register of the active threads."""
        value = np.asarray(value)
        value = value if value.dtype == bool else value.view(f"u{value.nbytes // self.threads}")
        self.registers[name] = np.where(self.active, value, self.registers.get(name, self._undefined(value.dtype)))

    def _named(self, name):
        return self.special[name] if name in self.special else self.registers[name]

    def _undefined(self, dtype):
        return np.full(self.threads * np.dtype(dtype).itemsize, 255, np.uint8).view(dtype)  # NaNs

    def parts(self, name, kind="b32"):
        return [self.get(part, kind) for part in re.findall(r"[^{},\s]+", name)]

    # Arithmetic.

    def _apply(self, function, kinds, out, *operands):
        self.set(out, function(*(self.get(x, kind) for x, kind in zip(operands, kinds, strict=True))))

    def _binary(function):  # noqa: N805
        def instruction(self, kind, out, a, b):
            self._apply(function, [kind[-1], kind[-1]], out, a, b)

        return instruction

    op_add, op_sub, op_div = _binary(operator.add), _binary(operator.sub), _binary(operator.truediv)
    op_and, op_or, op_xor = _binary(operator.and_), _binary(operator.or_), _binary(operator.xor)
    op_min, op_max = _binary(np.fmin), _binary(np.fmax)
    op_shl, op_shr = _binary(operator.lshift), _binary(operator.rshift)

    def op_mul(self, kind, out, a, b):
        wide = "wide" in kind
        self._apply(lambda a, b: _widened(a, wide) * b, [kind[-1]] * 2, out, a, b)

    def op_mad(self, kind, out, a, b, c):
        wide = "wide" in kind
        of_c = f"{kind[-1][0]}{2 * int(kind[-1][1:])}" if wide else kind[-1]
        self._apply(lambda a, b, c: _widened(a, wide) * b + c, [kind[-1], kind[-1], of_c], out, a, b, c)

    def op_fma(self, kind, out, a, b, c):
        self._apply(lambda a, b, c: (np.float64(a) * b + c).astype(np.float32), ["f32"] * 3, out, a, b, c)

    def op_neg(self, kind, out, a):
        self._apply(operator.neg, [kind[-1]], out, a)

    def op_ex2(self, kind, out, a):
        self._apply(np.exp2, ["f32"], out, a)

    def op_bfe(self, kind, out, a, start, length):
        bits = int(length)
        found = (self.get(a, "u32") >> np.uint32(start)) & np.uint32(2**bits - 1)
        sign = np.uint32(2**32 - 2**bits) * (found >> np.uint32(bits - 1)) if kind[-1] == "s32" else 0
        self.set(out, found | np.uint32(sign))

    def op_cvt(self, kind, out, *operands):
        to, of = kind[-2:]
        if to in _HALVES:  # two numbers, the second one first
            halves = [self.get(x, of).astype(_HALVES[to]).view(np.uint16).astype(np.uint32) for x in reversed(operands)]
            self.set(out, halves[0] | halves[1] << np.uint32(16))
        else:
            self._apply(lambda x: x.astype(_TYPES[to]), [of], out, *operands)

    def op_setp(self, kind, out, a, b):
        self._apply(getattr(operator, kind[-2]), [kind[-1]] * 2, out, a, b)

    def op_selp(self, kind, out, a, b, which):
        self._apply(lambda a, b, p: np.where(p, a, b), [kind[-1], kind[-1], "pred"], out, a, b, which)

    def op_mov(self, kind, out, a):
        if a.startswith("{"):
            self.set(out, np.stack(self.parts(a), axis=1).reshape(-1))
        elif out.startswith("{"):
            halves = self.get(a, "b64").view(np.uint32).reshape(-1, 2).T
            for register, half in zip(re.findall(r"%\w+|_", out), halves, strict=True):
                self.set(register, np.ascontiguousarray(half))
        else:
            self._apply(lambda x: x, [kind[-1]], out, a)

    # Control.

    def op_bra(self, kind, label):
        self.at[self.active] = self.labels[label]

    def op_ret(self, kind):
        self.at[self.active] = len(self.program)

    def op_bar(self, kind, *operands):
        assert self.active.all()
        self.barriers += kind == ["sync"]

    def op_shfl(self, kind, out, a, mask, *rest):
        assert kind[:2] == ["sync", "bfly"]
        value = self.get(a, "b32")
        self.set(out, value[np.arange(self.threads) ^ int(mask)])

    # Memory.

    def _address(self, operand):
        """Returns addresses in 64 bits, of a register plus a number."""
        name, offset = re.fullmatch(r"\[\s*(\S+?)\s*(?:\+\s*(-?\d+)\s*)?\]", operand).groups()
        return self._named(name).astype(np.int64) + int(offset or 0)

    def _memory(self, space, kind, operand, size):
        """Returns memory, and the places in it of as many bytes of every active thread, [threads, bytes]."""
        address = self._address(operand)[self.active, None] + np.arange(size)
        if space == "shared":
            self._touch(kind, address, self.warp[self.active, None])
            return self.shared, address
        regions = np.unique(address >> _REGION)
        assert len(regions) == 1, "addresses of one instruction are in several arrays"
        return self.arrays[int(regions[0])], address & (2**_REGION - 1)

    def _touch(self, kind, places, warp):
        """Notes that warps read or write bytes of shared memory."""
        warp = np.broadcast_to(warp, places.shape)
        for other in ("write", "read") if kind == "write" else ("write",):
            when, whose = self.touched[other][:, places]
            if ((when >= self.barriers) & (whose != warp)).any():
                raise Race(f"a warp {kind}s what another one {other}s, with no barrier in between")
        when, whose = self.touched[kind][:, places]
        others = (when >= self.barriers) & (whose != warp)  # other readers
        self._touched_by(kind, places, self.barriers, np.where(others, _SEVERAL, warp))

    def _touched_by(self, kind, places, when, whose):
        self.touched[kind][0, places], self.touched[kind][1, places] = when, whose

    def op_ld(self, kind, out, operand):
        if kind[0] == "param":
            self.set(out, np.broadcast_to(self.parameters[operand.strip("[]")], self.threads))
            return
        registers = re.findall(r"%\w+", out)
        memory, places = self._memory(kind[0], "read", operand, 4 * len(registers))
        words = memory[places].view(np.uint32)
        for register, word in zip(registers, words.T, strict=True):
            value = np.zeros(self.threads, np.uint32)
            value[self.active] = word
            self.set(register, value)

    def op_st(self, kind, operand, values):
        words = np.stack(self.parts(values), axis=1)[self.active]
        memory, places = self._memory(kind[0], "write", operand, 4 * words.shape[1])
        memory[places] = np.ascontiguousarray(words).view(np.uint8)

    def op_cp(self, kind, *operands):
        if kind[1] == "commit_group":
            self.copies.append([])
        elif kind[1] == "wait_group":
            *groups, open_group = self.copies
            done = max(0, len(groups) - int(operands[0]))
            for target, values, warp in itertools.chain.from_iterable(groups[:done]):
                self.shared[target] = values
                self._touched_by("write", target, self.barriers, warp)
            self.copies = [*groups[done:], open_group]
        else:
            shared, source, size, *read = operands  # read: how many bytes of them, before zeros
            memory, places = self._memory("global", "read", source, int(size, 16))
            some = self.get(read[0] if read else size, "u32")[self.active, None]
            values = np.where(np.arange(int(size, 16)) < some, memory[places], 0)
            _, target = self._memory("shared", "write", shared, int(size, 16))
            self._touched_by("write", target, np.iinfo(int).max, _SEVERAL)  # for nobody to read until it is waited for
            self.copies[-1].append((target, values, self.warp[self.active, None]))

    def _matrices(self, kind, access, operand):
        """Returns where matrices of 8 x 8 numbers of 16 bits are, [warps, matrices, 8 rows, 16 bytes].

        Lane i says where row i % 8 of matrix i // 8 is.
        """
        assert kind[:3] == ["sync", "aligned", "m8n8"]
        assert self.active.all()
        count = int(kind[3][1:])
        places = (self._address(operand)[:, None] + np.arange(16)).reshape(-1, 32, 16)[:, : 8 * count]
        self._touch(access, places, self.warp[::32, None, None])
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

    def op_mma(self, kind, out, a, b, c):
        """[16, 16] times [16, 8] of every warp, into float32."""
        assert kind[:5] == ["sync", "aligned", "m16n8k16", "row", "col"]
        assert self.active.all()
        halves = _HALVES[kind[-2]]

        def blocks(operand):  # the 8 x 8 matrices of an operand: [warps, 8, 8]
            for part in self.parts(operand):
                yield part.reshape(-1, 8, 4).view(np.uint16).view(halves).astype(np.float32)

        a0, a1, a2, a3 = blocks(a)
        left = np.concatenate([np.concatenate([a0, a2], 2), np.concatenate([a1, a3], 2)], 1)
        right = np.concatenate(list(blocks(b)), 2)  # [warps, 8 columns, 16]
        product = left @ right.swapaxes(1, 2)
        for i, (register, start) in enumerate(zip(re.findall(r"%\w+", out), self.parts(c, "f32"), strict=True)):
            rows, columns = _GROUP + 8 * (i // 2), 2 * _IN_GROUP + i % 2
            self.set(register, product[:, rows, columns].reshape(-1) + start)


def _widened(x, wide):
    return x.astype(f"{x.dtype.kind}{2 * x.dtype.itemsize}") if wide else x
