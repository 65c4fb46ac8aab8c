"""Bytes that a program compiled for a TPU (or, what it writes, a GPU) moves, read from its optimised HLO.

XLA's own cost analysis takes loops to have one turn, counts what stays in the core's memory (VMEM), and takes no account of
padding. Here a loop's body counts as often as it runs (once where the loop does not count to a constant), arrays in VMEM (`S(1)`
in their layout) count nothing, and others count with the padding of their tiles. An instruction reads its operands and writes its
results once; of an operand that it slices or gathers it reads what it takes, and of one that it updates in place it writes the
update.
"""

from __future__ import annotations

import dataclasses
import math
import re

_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\](?:\{([\d,]*)(:[^}]*)?\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) .*\{$")
_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_TAKES = {"slice", "dynamic-slice", "gather", "slice-start"}
_NO_WORK = 'custom_call_target="(AllocateBuffer|ConcatBitcast)"'


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its type, name of operation, names of operands, and the line's rest."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def called(self, by: str) -> str:
        """Returns the computation that it calls by an attribute."""
        return re.findall(rf"\b{by}=%([\w.\-]+)", self.rest)[0]


def hbm_bytes(text: str) -> int:
    """Returns the bytes that a program, the text of an optimised HLO module, reads from HBM and writes to it."""
    computations, entry = _parse(text)
    return _moved(computations, entry)


def bytes_of_results(text: str, op: str) -> int:
    """Returns the bytes that a program's instructions of one operation return, their padding included."""
    found = [x for of_program in _parse(text)[0].values() for x in of_program.values()]
    return sum(n for x in found if x.op.removesuffix("-start") == op for n, _ in _sizes(x.type))


def written_bytes(text: str) -> int:
    """Returns the bytes that fusions, kernels and copies of a program without loops write."""
    computations, entry = _parse(text)
    wrote = (x for x in computations[entry].values() if x.op in ("fusion", "custom-call", "copy"))
    return sum(_written(computations, computations[entry], x) for x in wrote)


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    computations: dict[str, dict[str, Instruction]] = {}
    current, entry = {}, ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if not line.startswith(" ") and (begins := _COMPUTATION.match(line)):
            current = computations[begins[2]] = {}
            entry = begins[2] if begins[1] else entry
        elif found := _INSTRUCTION.match(_flat(line)):
            root, name, of_type, op, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
            current[name] = Instruction(name, of_type, op, operands, rest, bool(root))
    return computations, entry


def _flat(line: str) -> str:
    """Returns a line without the brackets of tiles, so that a type is up to its first space or its last bracket."""
    return re.sub(r"([TSLE])\(([\d,*]*)\)(?:\([\d,]*\))*", r"\1<\2>", line)


def _moved(computations: dict, name: str) -> int:
    computation, total = computations[name], 0
    for x in computation.values():
        if x.op == "while":
            total += _turns(computations[x.called("condition")]) * _moved(computations, x.called("body"))
        elif x.op == "call":
            total += _moved(computations, x.called("to_apply"))
        elif x.op not in _NOTHING and not x.op.endswith("-done") and not re.search(_NO_WORK, x.rest):
            total += _read(computations, computation, x) + _written(computations, computation, x)
    return total


def _turns(condition: dict[str, Instruction]) -> int:
    """Returns how often a loop runs that counts from 0 to a constant; of one that does not, 1."""
    limits = [int(x.rest.partition(")")[0]) for x in condition.values() if x.op == "constant" and "s32" in x.type]
    return max(limits, default=1)


def _read(computations: dict, computation: dict, x: Instruction) -> int:
    operands = [computation[name] for name in x.operands]
    if x.op in _TAKES:
        # A start's type begins with the operand's.
        taken = _sizes(x.type)[1][0] if x.op == "slice-start" else _largest(x.type)
        return min(_bytes(operands[0].type), taken)
    if x.op == "dynamic-update-slice":
        return _bytes(operands[1].type)
    if x.op != "fusion":
        return sum(_bytes(operand.type) for operand in operands)
    fused = computations[x.called("calls")]
    parameters = {int(p.rest.partition(")")[0]): p.name for p in fused.values() if p.op == "parameter"}
    return sum(
        min(_bytes(operand.type), _used(fused, parameters[n], operand.type)) for n, operand in enumerate(operands)
    )


def _used(fused: dict, name: str, whole: str) -> int:
    """Returns how much of a parameter a fusion reads."""
    total = 0
    for x in fused.values():
        if name not in x.operands:
            continue
        if x.op == "bitcast":
            total += _used(fused, x.name, whole)
        elif x.op in _TAKES and x.operands[0] == name:
            total += _largest(x.type)
        elif x.op != "dynamic-update-slice" or x.operands[0] != name:
            return _bytes(whole)
    return total


def _written(computations: dict, computation: dict, x: Instruction) -> int:
    if x.op.endswith("-start"):  # of an operand, its copy and a flag
        return _bytes(x.type) - _bytes(computation[x.operands[0]].type) if x.op == "copy-start" else 0
    if x.op not in ("fusion", "dynamic-update-slice"):
        return _bytes(x.type)
    wrote, results = x, _in_hbm(x.type)
    if x.op == "fusion":
        computation = computations[x.called("calls")]
        wrote = next(of_fused for of_fused in computation.values() if of_fused.is_root)
    # Of several results all may be of one instruction, such as a reduction.
    parts = [computation[name] for name in wrote.operands] if wrote.op == "tuple" else [wrote] * len(results)
    return sum(_of_result(computation, part, n) for part, n in zip(parts, results, strict=True))


def _of_result(computation: dict, x: Instruction, whole: int) -> int:
    """Returns how much of a result of so many bytes an instruction writes: of one that it updates, the update in its dtype."""
    while x.op == "bitcast":
        x = computation[x.operands[0]]
    if x.op != "dynamic-update-slice":
        return whole
    update = computation[x.operands[1]].type
    return min(whole, _largest(update) * _bits(x.type) // _bits(update))


def _bytes(of_type: str) -> int:
    """Returns the bytes in HBM of an array or a tuple."""
    return sum(_in_hbm(of_type))


def _in_hbm(of_type: str) -> list[int]:
    """Returns the bytes in HBM of every array of a type."""
    return [0 if re.search(r"S<[1-9]", layout) else n for n, layout in _sizes(of_type)]


def _largest(of_type: str) -> int:
    return max(n for n, _ in _sizes(of_type))


def _bits(of_type: str) -> int:
    """Returns the bits of an element of an array."""
    dtype = of_type.partition("[")[0]
    return 8 if dtype == "pred" else int(re.sub(r"^\D+", "", dtype))


def _sizes(of_type: str) -> list[tuple[int, str]]:
    """Returns bytes and layout of every array of a type."""
    found = []
    for dtype, shape, order, layout in _ARRAY.findall(of_type):
        sides = [int(n) for n in shape.split(",") if n]
        sides = [sides[int(axis)] for axis in reversed(order.split(",")) if axis]  # the fastest one last
        tile = [int(n) for n in re.findall(r"T<([\d,]*)>", layout)[0].split(",")] if "T<" in layout else []
        sides = [1] * (len(tile) - len(sides)) + sides
        tile = [1] * (len(sides) - len(tile)) + tile
        padded = math.prod(-(-n // of_tile) * of_tile for n, of_tile in zip(sides, tile, strict=True))
        found.append((padded * _bits(dtype) // 8, layout))
    return found
