"""Executes PTX on NumPy arrays, so that what Triton compiled for a GPU runs without one. Only what natjax's kernels need is here.

The threads of a block take one instruction at a time, the first of those that any is at: they part at branches and meet again
after them. Every array is 2**40 bytes from the next, so that an offset out of bounds, or cut to 32 bits, is an error. So is what
depends on which warp is faster (`ptx_memory`); products of matrices are in `ptx_matrices`.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re

import numpy as np
from ptx_matrices import HALVES, Matrices
from ptx_memory import REGION, Memory, Race

__all__ = ["Race", "run", "without_one"]

_TYPES = {
    "s16": np.int16, "u16": np.uint16, "b16": np.uint16, "s32": np.int32, "u32": np.uint32, "b32": np.uint32, "f32": np.float32,
    "s64": np.int64, "u64": np.uint64, "b64": np.uint64, "pred": np.bool_,
}  # fmt: skip
_DTYPES = {name: np.dtype(dtype) for name, dtype in _TYPES.items()}
_INSTRUCTION = re.compile(r"(?:@(!?%p\d+)\s+)?([a-z][\w.:]*)\s*(.*);")
_NUMBER = re.compile(r"(-?)(0x[0-9A-Fa-f]+|\d+)U?")


def run(text, grid, arguments, shared_bytes):
    """Runs the kernel of a PTX text over its grid; arguments are arrays, some of which it writes, and integers of 32 bits."""
    program, labels, parameters = _parse(text)
    threads = int(re.search(r"\.reqntid (\d+)", text)[1])
    arrays = {i + 1: x.reshape(-1).view(np.uint8) for i, x in enumerate(arguments) if isinstance(x, np.ndarray)}
    values = [np.uint64((i + 1) << REGION) if i + 1 in arrays else np.uint32(x) for i, x in enumerate(arguments)]
    values += [np.uint64(0)] * (len(parameters) - len(values))  # scratch memory that is not there
    with np.errstate(all="ignore"):
        for at in itertools.product(*map(range, grid)):
            named = dict(zip(parameters, values, strict=True))
            _Block(program, labels, named, arrays, at, grid, threads, shared_bytes).run()


def without_one(text, instruction):
    """Returns the texts without the first, the second, ... of an instruction."""
    places = [found.span() for found in re.finditer(rf"\b{re.escape(instruction)}\b[^;]*;", text)]
    return [text[:start] + text[end:] for start, end in places]


def _parse(text):
    """Returns instructions (guard, opcode, operands), the places of labels, and the names of parameters."""
    entry = text[text.index(".visible .entry") :]
    body = re.sub(r"//.*", "", entry[entry.index("{") + 1 : entry.index("// -- End function")])
    program, labels = [], {}
    for line in map(str.strip, body.splitlines()):
        if label := re.fullmatch(r"(\$\w+):", line):
            labels[label[1]] = len(program)
        elif found := _INSTRUCTION.fullmatch(line):
            guard, opcode, rest = found.groups()
            kind = re.sub(r"::\w+", "", opcode).split(".")
            program.append((guard, kind, re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)))
        elif not re.fullmatch(r"([.}{].*)?", line):
            raise NotImplementedError(f"{line!r} is not understood")
    return program, labels, re.findall(r"\.param \S+ .*?(\w+_param_\d+)", entry[: entry.index("{")])


class _Block(Memory, Matrices):
    """The threads of a block, their registers and their shared memory."""

    def __init__(self, program, labels, parameters, arrays, block, grid, threads, shared_bytes):
        self.program, self.labels, self.parameters, self.arrays = program, labels, parameters, arrays
        self.threads, self.active = threads, np.ones(threads, bool)
        self.at = np.zeros(threads, int)
        self.special = {"%tid.x": np.arange(threads, dtype=np.uint32), "global_smem": np.zeros(threads, np.uint32)}
        for axis, i, count in zip("xyz", block, grid, strict=True):
            self.special[f"%ctaid.{axis}"] = np.full(threads, i, np.uint32)
            self.special[f"%nctaid.{axis}"] = np.full(threads, count, np.uint32)
        self.registers = {}
        Memory.__init__(self, threads, shared_bytes)
        Matrices.__init__(self)

    def run(self):
        while (here := self.at.min()) < len(self.program):
            guard, opcode, operands = self.program[here]
            self.active = self.at == here
            self.at[self.active] = here + 1
            if guard:
                self.active = self.active & (self.get(guard.lstrip("!"), "pred") ^ guard.startswith("!"))
            self.all_active = self.active.all()
            try:
                getattr(self, f"op_{opcode[0]}")(opcode[1:], *operands)
            except Exception as error:
                error.add_note(f"in {'.'.join(opcode)} {', '.join(operands)}")
                raise

    def get(self, name, kind):
        """Returns a register or a number, of every thread."""
        if kind == "f32x2":
            return self.get(name, "b64").view(np.float32)
        if kind in HALVES:
            return self.get(name, "b16").view(HALVES[kind])
        dtype = _DTYPES[kind]
        if (value := self.registers.get(name)) is None:
            if name.startswith("0f"):
                value = np.full(self.threads, int(name[2:], 16), np.uint32)
            elif number := _NUMBER.fullmatch(name):
                return _constant("".join(number.groups()), dtype, self.threads)
            else:
                value = self.special.get(name)
                value = self._undefined(dtype) if value is None else value
        return value if dtype.kind == "b" else value.astype(f"u{dtype.itemsize}", copy=False).view(dtype)

    def set(self, name, value):
        """Sets a register of the active threads."""
        self.hold(name)
        value = np.asarray(value)
        value = value if value.dtype == bool else value.view(f"u{value.nbytes // self.threads}")
        if not self.all_active:
            value = np.where(self.active, value, self.registers.get(name, self._undefined(value.dtype)))
        self.registers[name] = value

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
        if kind[0] == "hi":
            bits = int(kind[-1][1:])
            half = _DTYPES[kind[-1]]
            self._apply(lambda a, b: (_widened(a, True) * b >> bits).astype(half), [kind[-1]] * 2, out, a, b)
        else:
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

    def op_prmt(self, kind, out, a, b, selector):
        """Bytes of two words; a selector's digit of 8 or more asks for its byte's sign."""
        assert kind == ["b32"]
        assert not int(selector.rstrip("U"), 0) & 0x8888
        source = np.stack([self.get(a, "b32"), self.get(b, "b32")], axis=1).view(np.uint8)
        chosen = [int(selector.rstrip("U"), 0) >> 4 * i & 7 for i in range(4)]
        self.set(out, np.ascontiguousarray(source[:, chosen]).view(np.uint32).reshape(-1))

    def op_cvt(self, kind, out, *operands):
        to, of = kind[-2:]
        if to == "tf32":  # to nearest, ties away from zero
            self._apply(lambda x: (x + np.uint32(1 << 12)) & np.uint32(0xFFFFE000), ["b32"], out, *operands)
        elif to in HALVES:  # one number, or two of them, the second one first
            halves = [self.get(x, of).astype(HALVES[to]).view(np.uint16) for x in reversed(operands)]
            self.set(out, np.stack(halves, axis=1).reshape(-1).view(f"u{2 * len(halves)}"))
        else:
            self._apply(lambda x: x.astype(_TYPES[to]), [of], out, *operands)

    def op_setp(self, kind, out, a, b):
        compare = (lambda a, b: (a == a) & (b == b)) if kind[-2] == "num" else getattr(operator, kind[-2])
        self._apply(compare, [kind[-1]] * 2, out, a, b)

    def op_selp(self, kind, out, a, b, which):
        self._apply(lambda a, b, p: np.where(p, a, b), [kind[-1], kind[-1], "pred"], out, a, b, which)

    def op_mov(self, kind, out, a):
        if a.startswith("{"):
            parts = self.parts(a, f"b{int(kind[-1][1:]) // len(a.split(','))}")
            self.set(out, np.stack(parts, axis=1).reshape(-1))
        elif out.startswith("{"):
            registers = re.findall(r"%\w+|_", out)
            whole = self.get(a, kind[-1])
            parts = whole.view(f"u{whole.itemsize // len(registers)}").reshape(-1, len(registers)).T
            for register, part in zip(registers, parts, strict=True):
                self.set(register, np.ascontiguousarray(part))
        elif not self.rename(out, a):
            self._apply(lambda x: x, [kind[-1]], out, a)

    # Control.

    def op_bra(self, kind, label):
        self.at[self.active] = self.labels[label]

    def op_ret(self, kind):
        self.at[self.active] = len(self.program)

    def op_bar(self, kind, *operands):
        assert self.all_active
        if kind == ["sync"]:
            self.pass_barrier()

    def op_shfl(self, kind, out, a, lane, *rest):
        assert kind[0] == "sync"
        value, threads = self.get(a, "b32"), np.arange(self.threads)
        if kind[1] == "bfly":
            self.set(out, value[threads ^ int(lane)])
        else:
            assert kind[1] == "idx"
            self.set(out, value[threads // 32 * 32 + self.get(lane, "u32") % 32])


@functools.cache
def _constant(number, dtype, threads):
    """Returns a number, of every thread."""
    constant = np.full(threads, int(number, 0)).astype(dtype)
    constant.flags.writeable = False
    return constant


def _widened(x, wide):
    return x.astype(f"{x.dtype.kind}{2 * x.dtype.itemsize}") if wide else x
