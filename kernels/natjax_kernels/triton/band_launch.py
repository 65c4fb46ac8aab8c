"""Launches the band kernel from JAX. jax-triton cannot lower Gluon: Triton compiles the kernel here, and XLA is handed its PTX.

It is the custom call of jaxlib's that jax-triton makes, too. On a CPU the kernel runs in `natjax_kernels.triton.interpret_gluon`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.bias import bias_table, table_shape
from natjax_kernels.fused.band import WARPS, Band, band
from natjax_kernels.fused.configurations import Config
from natjax_kernels.fused.layout import Sizes
from natjax_kernels.fused.schedule import Schedule
from natjax_kernels.logits import Logits
from natjax_kernels.triton.launch import capability, interpreted
from natjax_kernels.window import Window

_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int32": "i32"}


@dataclasses.dataclass(frozen=True)
class BandLaunch:
    """The band kernel on one shape, as `natjax_kernels.triton.launch.Launch` is another kernel.

    Attributes:
        spatial: sides of the map.
        window: its window.
        logits: how they come from products; with a scale above 0.
        config: one of `natjax_kernels.fused.band.configurations`.
        multiprocessors: of the device, which programs fill.
    """

    spatial: tuple[int, ...]
    window: Window
    logits: Logits
    config: Config
    multiprocessors: int

    @property
    def layout(self) -> Band:
        """The layout of the map."""
        return band(self.spatial, self.window)

    def table(self, rpb):
        """Returns the table, [classes, N or 1, 64, 32 P] float32, in units of logits not yet scaled."""
        rpb = None if rpb is None else rpb.astype(jnp.float32) / self.logits.scale
        return bias_table(self.layout.relative, rpb, jnp.float32, masked=-math.inf)

    def shares(self, batch: int, programs: int) -> tuple[np.ndarray, int]:
        """Returns the tiles, one for each program, and the entries of the batch that a program takes."""
        classes, _, slots = table_shape(self.layout.relative)
        sizes = Sizes(classes, 1, slots, tuple(np.bincount(self.layout.tiles[:, 2]).tolist()))
        return self.layout.tiles, Schedule(sizes, self.config, self.multiprocessors).shares(batch, programs)[1]

    def __call__(self, name: str, arrays: list, outputs: list, *, table, share: int, runs: np.ndarray, places: None):
        """Runs the kernel, as `name` "fwd", on query, key and value [B, L, N, D] and None; returns arrays like `outputs`."""
        batch, _, heads, channels = arrays[0].shape
        plan = [jnp.asarray(x, jnp.int32) for x in (runs, self.layout.box_rows)]
        operands, grid = [*arrays[:3], table, *plan], (len(runs), heads, math.ceil(batch / share))
        static = self.static(heads, table.shape[1], channels)
        run = _interpret if interpreted() else _call
        return run(operands, (batch, share), outputs, grid, static)

    def static(self, heads: int, bias_heads: int, channels: int) -> dict[str, Any]:
        """Returns the compile-time arguments."""
        box = self.layout.positions + WARPS - 1
        return {
            "SCALE": self.logits.scale,
            "WIDTH": self.spatial[1],
            "TOKENS": math.prod(self.spatial),
            "HEADS": heads,
            "BIAS_HEADS": bias_heads,
            "D": channels,
            "P": self.layout.positions,
            "PARTS": tuple((box & -2 * n, n) for n in (4, 2, 1) if box & n),
            "STAGES": self.config.num_stages,
            "WIDE": math.prod(self.spatial) * heads * channels >= 2**31,
        }


def source(static: dict[str, Any], dtype: str) -> Any:
    """Returns what Triton compiles: the kernel for tokens of a dtype, in arrays that begin at multiples of 16 bytes."""
    from triton.experimental.gluon._runtime import GluonASTSource

    from natjax_kernels.triton import band as kernels

    names = kernels.band.arg_names
    types = dict.fromkeys(("query", "key", "value", "out"), f"*{_TYPES[dtype]}")
    types |= dict.fromkeys(("table", "maxima", "logs"), "*fp32") | dict.fromkeys(("tiles", "box_rows"), "*i32")
    types |= dict.fromkeys(("batch", "share"), "i32")
    pointers = [i for i, name in enumerate(names) if types.get(name, "").startswith("*")]
    return GluonASTSource(
        kernels.band,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in static.items()},
        {(i,): [["tt.divisibility", 16]] for i in pointers},
    )


@functools.cache
def _compile(static: tuple[tuple[str, Any], ...], dtype: str, architecture: int) -> tuple[str, int, Any]:
    """Returns name, bytes of shared memory and PTX of the kernel for an architecture.

    Stage by stage: `triton.compile` wants a folder to cache in, which jax-triton takes away from it, and an assembler.
    """
    from triton._C.libtriton import ir  # ty: ignore[missing-module-member]
    from triton.backends.compiler import GPUTarget, Language
    from triton.compiler import make_backend

    target = GPUTarget("cuda", architecture, 32)
    backend: Any = make_backend(target)
    options = backend.parse_options({"num_warps": WARPS})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    generators, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    module = source(dict(static), dtype).make_ir(target, options, generators, modules, context)
    stages, metadata = {}, {}
    backend.add_stages(stages, options, Language.GLUON)
    for stage in ("ttgir", "llir", "ptx"):
        module = stages[stage](module, metadata)
    return metadata["name"], metadata["shared"], module


def _call(operands, scalars, outputs, grid, static):
    from jaxlib import gpu_triton

    dtype, architecture = operands[0].dtype.name, capability()
    name, shared, ptx = _compile(tuple(static.items()), dtype, architecture)
    kernel = gpu_triton.TritonKernel(name, WARPS, 1, shared, ptx, "", architecture)
    array = gpu_triton.create_array_parameter(0, 16)  # nothing to clear; multiples of 16 bytes
    parameters = [array] * len(operands)
    parameters += [gpu_triton.create_scalar_parameter(x, "i32") for x in scalars]
    parameters += [array] * len(outputs)
    config: Any = zlib.compress(gpu_triton.TritonKernelCall(kernel, *grid, parameters).to_proto(name, b""))
    call = jax.ffi.ffi_call("triton_kernel_call", outputs, custom_call_api_version=2, legacy_backend_config=config)
    return call(*operands)


def _interpret(operands, scalars, outputs, grid, static):
    from natjax_kernels.triton import band as kernels
    from natjax_kernels.triton.interpret_gluon import run

    call = functools.partial(run, kernels.band, grid, scalars, static, outputs)
    return jax.pure_callback(call, outputs, *operands)
