"""Executes the fused kernels as compiled for GPUs that are not here: `python tests/deviceless/fused_on_cpu.py` (minutes).

The op runs with all its gradients, its launches by `ptx` instead of on a GPU. Prints for every case what ran and how far output,
log-sum-exp and gradients are from the reference's in float64, in units of the largest entry; then how many faults show, such as a
barrier that is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import ptx

from natjax_kernels import reference
from natjax_kernels.problem import make_problem
from natjax_kernels.triton import choice, kernels, launch, op


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of the op.

    Attributes:
        spatial: sides of the map.
        like: sides of the map whose configurations it takes; None for its own.
        kernel_size: neighbours along every axis.
        channels: of a head.
        dtype: of tokens and bias.
        dilation: along every axis.
        bias: whether there is one.
        batch: entries.
        heads: heads.
        multiprocessors: of the GPU; with few of them, programs take several tiles.
        wide: whether offsets are of 64 bits, as in large maps.
        block: sides of blocks that halos are cut into, as those of more than 1024 keys are; None for natjax's choice.
        d_lse: whether the log-sum-exp has a gradient, too.
        values: channels of a head of values; None for as many as of keys.
        group: heads of queries that share a head of keys.
        masked: whether a mask hides keys, of some queries all that they see.
        periodic: whether the last axis is a ring.
        spacing: keys per query, along the last axis.
        soft_cap: of logits.
    """

    spatial: tuple[int, ...]
    like: tuple[int, ...] | None
    kernel_size: tuple[int, ...]
    channels: int = 32
    dtype: str = "bfloat16"
    dilation: int = 1
    bias: bool = True
    batch: int = 2
    heads: int = 1
    multiprocessors: int = 1
    wide: bool = False
    block: tuple[int, ...] | None = None
    d_lse: bool = False
    values: int | None = None
    group: int = 1
    masked: bool = False
    periodic: bool = False
    spacing: int = 1
    soft_cap: float | None = None


CASES = {
    "level 1": Case((21, 24), (56, 56), (7, 7), heads=2),
    "dilated": Case((14, 14), None, (7, 7), dtype="float16", dilation=2, batch=3, wide=True),
    "level 4": Case((7, 7), None, (7, 7), batch=5, heads=2, multiprocessors=2),
    "no bias": Case((14, 16), (56, 56), (7, 7), bias=False, multiprocessors=8, batch=3),
    "kernel 11": Case((20, 24), (56, 56), (11, 11), batch=1),
    "1-D, 24 channels": Case((100,), None, (13,), 24, "float16", dilation=2, heads=2, d_lse=True, values=20),
    "3-D, several blocks": Case((5, 8, 9), None, (3, 5, 5), 16, block=(4, 4, 4)),
    "64 channels": Case((16, 16), (56, 56), (7, 7), 64, batch=1),
    "128 channels": Case((16, 16), (56, 56), (7, 7), 128, batch=1),
    "float32": Case((16, 16), (56, 56), (7, 7), dtype="float32"),
    "grouped and masked": Case((12, 14), (56, 56), (7, 7), heads=4, group=2, masked=True, multiprocessors=4),
    "coarser queries on a ring": Case(
        (8, 42), None, (4, 7), dtype="float16", dilation=2, periodic=True, spacing=3, masked=True
    ),
    "capped": Case((14, 16), (56, 56), (7, 7), dtype="float16", batch=1, soft_cap=0.5),
    "256 channels": Case((9, 10), (56, 56), (7, 7), 256, batch=1, bias=False),
}
ARCHITECTURES = (
    80,
    90,
)  # mma.sync and ldmatrix, and wgmma where a tile has 64 slots; 89 and 120 have the former's instructions
RESULTS = ("out", "lse", "dquery", "dkey", "dvalue", "drpb")


@dataclasses.dataclass(frozen=True)
class Launched:
    """A launch: the kernel's name, PTX, grid, arguments, shared memory in bytes, and what is static of its arguments."""

    name: str
    text: str
    grid: tuple[int, ...]
    arguments: list
    shared: int
    static: dict

    def run(self):
        """Runs it; returns the arguments, some of them written."""
        arguments = [np.array(x) if isinstance(x, np.ndarray) else x for x in self.arguments]
        ptx.run(self.text, self.grid, arguments, self.shared)
        return arguments

    @property
    def described(self):
        """What is particular about it."""
        static, parts = self.static, [self.name]
        parts += [flag for flag in ("D_QUERY", "D_TABLE", "D_LSE", "MASKED", "WIDE") if static.get(flag)]
        chunks = f"{static['CHUNKS']} x {static['K']}" + (" on chip" if static["RESIDENT"] else "")
        return f"{' '.join(parts)}: {static['T']} queries, {np.prod(static['BLOCKS'])} blocks of {chunks}, grid {self.grid}"


class Launches:
    """Stands in for `launch._compile`: executes what it would have launched, and keeps it."""

    def __init__(self, architecture, wide):
        self.architecture, self.wide = architecture, wide
        self.made = []

    def __call__(self, name, arguments, outputs, grid, static, config):
        static = static | {"WIDE": self.wide}
        text, shared = _compile(name, arguments, outputs, static, config, self.architecture)

        def execute(*operands):
            rest = iter(operands)
            # What is 1 is a constant of what jax-triton compiles.
            passed = [
                x if isinstance(x, int) else np.array(next(rest)) for x in arguments if not isinstance(x, int) or x != 1
            ]
            results = [np.full(x.shape, np.nan, x.dtype) for x in outputs]
            self.made.append(Launched(name, text, grid, [*passed, *results], shared, static))
            return self.made[-1].run()[-len(outputs) :]

        return jax.pure_callback(execute, outputs, *(x for x in arguments if not isinstance(x, int)))


def _compile(name, arguments, outputs, static, config, architecture):
    """Returns PTX and bytes of shared memory of a launch, as jax-triton compiles it."""
    from jax_triton import triton_lib

    types = [
        "i32" if isinstance(x, int) else triton_lib.get_triton_type(jax.core.ShapedArray(x.shape, x.dtype))
        for x in (*arguments, *outputs)
    ]
    with mock.patch.object(triton_lib.triton_kernel_call_lib, "TritonKernel", lambda *parts: parts):
        (_, _, _, shared, text, *_), _ = triton_lib.get_or_create_triton_kernel(
            triton_lib.get_cuda_backend,
            "cuda",
            getattr(kernels, name),
            types,
            [(i, "i32", x) for i, x in enumerate(arguments) if isinstance(x, int)],
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            num_ctas=1,
            compute_capability=architecture,
            enable_fp_fusion=True,
            metaparams=static,
            dump=False,
        )
    return text, shared


def execute(case, architecture):
    """Returns the largest errors of a case on an architecture, and its launches."""
    rng = np.random.default_rng(0)
    queries = (case.batch, *case.spatial[:-1], case.spatial[-1] // case.spacing, case.heads)
    keys = (case.batch, *case.spatial, case.heads // case.group)
    values = case.values or case.channels
    shapes = [(*queries, case.channels), (*keys, case.channels), (*keys, values), (*queries, values)]
    biases = (case.heads, *(2 * k - 1 for k in case.kernel_size))
    *tokens, d_out = (jnp.asarray(rng.normal(size=size), case.dtype) for size in shapes)
    arrays = (*tokens, jnp.asarray(rng.normal(size=biases), case.dtype) if case.bias else None)
    launches = Launches(architecture, case.wide)
    with _launching(launches, case):
        got = _evaluated(op.attend, case, arrays, d_out)
    with jax.enable_x64(True):
        right = _evaluated(reference.attend, case, *jax.tree.map(lambda x: x.astype("float64"), (arrays, d_out)))
    pairs = {name: (a, b) for name, a, b in zip(RESULTS, got, right, strict=True) if b is not None}
    return {name: float(np.abs(a - b).max() / np.abs(b).max()) for name, (a, b) in pairs.items()}, launches


@contextlib.contextmanager
def _launching(launches, case):
    def choose(described, _):
        config = choice.estimate(dataclasses.replace(described, spatial=case.like or case.spatial))
        return dataclasses.replace(config, block=case.block, chunk=32, resident=False) if case.block else config

    stand_ins: list[tuple[object, str, Callable]] = [
        (launch, "_compile", launches),
        (op, "choose", choose),
        (op, "capability", lambda: launches.architecture),
        (launch, "capability", lambda: launches.architecture),
        (op, "device_kind", lambda: ""),
        (op, "multiprocessors", lambda: case.multiprocessors),
    ]
    with contextlib.ExitStack() as stack:
        for where, name, stand_in in stand_ins:
            stack.enter_context(mock.patch.object(where, name, stand_in))
        yield


def _evaluated(attend, case, arrays, d_out):
    """Returns output, log-sum-exp and gradients, in float64."""

    periodic = (False,) * (len(case.spatial) - 1) + (case.periodic,)
    mask = None
    if case.masked:  # of the first half of the last axis nothing is seen
        mask = jnp.arange(math.prod(case.spatial)).reshape(case.spatial) % 5 > 1
        mask = jnp.broadcast_to(mask.at[..., : case.spatial[-1] // 2].set(False), (case.batch, *case.spatial))

    def run(query, key, value, rpb):
        window = {"kernel_size": case.kernel_size, "dilation": case.dilation, "periodic": periodic}
        optional = {"rpb": rpb, "key_mask": mask, "logits_soft_cap": case.soft_cap}
        out, lse = attend(make_problem(query, key, value, **optional, **window))
        return out, jnp.where(jnp.isneginf(lse), 0, lse)

    if case.d_lse:
        (out, lse), pull = jax.vjp(run, *arrays)
        gradients = pull((d_out, d_out[..., 0].astype(lse.dtype)))
    else:
        out, pull, lse = jax.vjp(run, *arrays, has_aux=True)
        gradients = pull(d_out)
    return [None if x is None else np.asarray(x, np.float64) for x in (out, lse, *gradients)]


def check(name, architecture):
    """Returns errors and launches of a case on an architecture."""
    errors, launches = execute(CASES[name], architecture)
    return {"errors": errors, "launches": [made.described for made in launches.made]}


def check_faults(architecture):
    """Returns how many of the faults of each kernel show, by kind, and of how many, in its first program of level 1."""
    _, launches = execute(CASES["level 1"], architecture)
    found = {}
    for made in launches.made:
        first = dataclasses.replace(made, grid=(1, 1, 1))
        right = first.run()
        found[made.name] = {
            what: [sum(_shows(one, right) for one in several), len(several)]
            for what, several in _faults(first).items()
            if several
        }
    return found


def _faults(made):
    """Returns launches without one barrier or wait, without masks of stores, and with one score that is not masked."""
    faults = {
        instruction: [dataclasses.replace(made, text=text) for text in ptx.without_one(made.text, instruction)]
        for instruction in ("bar.sync", "cp.async.wait_group", "wgmma.wait_group", "wgmma.fence", "fence.proxy.async")
    }
    if made.static["T"] > math.prod(made.static["TILE"]):
        faults["stores"] = [dataclasses.replace(made, text=re.sub(r"@%p\d+ (st\.global)", r"\1", made.text))]
    table = made.arguments[3].copy()  # [rows, heads, T, S]
    first_masked = np.isneginf(table).argmax(axis=-1)[:, :, :1, None]
    np.put_along_axis(table[:, :, :1], first_masked, 0, axis=-1)
    faults["masks"] = [dataclasses.replace(made, arguments=[*made.arguments[:3], table, *made.arguments[4:]])]
    return faults


def _shows(fault, right):
    """Returns whether a launch is in error or writes something else."""
    try:
        results = fault.run()
    except ptx.Race:
        return True
    return any(a.tobytes() != b.tobytes() for a, b in zip(results[-2:], right[-2:], strict=True))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="*", default=[*CASES, "faults"], choices=[*CASES, "faults"])
    parser.add_argument("--architectures", nargs="*", type=int, default=ARCHITECTURES)
    args = parser.parse_args()
    results = {
        f"{name}, sm_{architecture}": check_faults(architecture) if name == "faults" else check(name, architecture)
        for name, architecture in itertools.product(args.cases, args.architectures)
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
