"""Launches the kernels from JAX: on an NVIDIA GPU through jax-triton, on a CPU in Triton's interpreter.

The interpreter is for tests: it runs where TRITON_INTERPRET=1 was set before Triton was imported, some 10,000 times slower.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.bias import bias_table
from natjax_kernels.fused.configurations import Config, power_of_two
from natjax_kernels.fused.layout import Layout, layout, sizes
from natjax_kernels.fused.schedule import Schedule
from natjax_kernels.logits import Logits
from natjax_kernels.window import Window

# Values of jax_default_matmul_precision for which one TF32 product is precise enough; others, such as "BF16_BF16_F32_X3", ask for
# more, or name no dtype.
_ONE_PASS = ("tensorfloat32", "bfloat16", "TF32_TF32_F32", "BF16_BF16_F32")


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel on one shape: what is static of its arguments.

    Attributes:
        spatial: sides of the map.
        window: its window.
        logits: how they come from products; with a scale above 0.
        config: how the work is cut.
        multiprocessors: of the device, which programs fill.
        precision: of float32 products, one of Triton's `input_precision`.
        transposed: whether tiles are of keys.
    """

    spatial: tuple[int, ...]
    window: Window
    logits: Logits
    config: Config
    multiprocessors: int
    precision: str
    transposed: bool = False

    @property
    def layout(self) -> Layout:
        """The layout of the map."""
        return layout(self.spatial, self.window, self.config.tile, self.config.block, self.transposed)

    @property
    def schedule(self) -> Schedule:
        """How programs share the work."""
        cut = self.config.tile, self.config.block, self.transposed
        return Schedule(sizes(self.spatial, self.window, *cut), self.config, self.multiprocessors)

    def table(self, rpb):
        """Returns the table of bias-or-minus-infinity in base 2, [rows, N or 1, T, S], padded as the kernel wants it.

        A bias is in float32, which costs no conversion of every score; a mask, which may be large, in bfloat16.
        """
        dtype = jnp.bfloat16 if rpb is None else jnp.float32
        rpb = None if rpb is None else rpb.astype(jnp.float32) * math.log2(math.e)
        return bias_table(self.layout.relative, rpb, dtype, masked=-math.inf, padded=self.schedule.table(1)[2:])

    def shares(self, batch: int, programs: int) -> tuple[np.ndarray, int]:
        """Returns the runs of tiles, [kinds, runs, 2], and the entries of the batch of a program, with `programs` to each."""
        longest, share = self.schedule.shares(batch, programs)
        return self.layout.runs(longest), share

    def __call__(
        self,
        name: str,
        arrays: list,
        outputs: list,
        *,
        table,
        share: int,
        runs: np.ndarray,
        places: Any,
        parts: int = 1,
        **static,
    ):
        """Runs the kernel `name` on `arrays`: query, key, value, hidden keys and others; returns arrays like `outputs`.

        Kernels have no parameter for arrays that are None: what is 1, as they are passed, is a constant to Triton.
        `parts` is how many programs share a run: 1, or one for every chunk of its halos. `places` are those of the problem.
        """
        (batch, _, heads, channels), (_, _, key_heads, _), (*_, values) = (x.shape for x in arrays[:3])
        static |= self.static(heads, table.shape[1], channels, key_heads, values)
        static["UPCAST"] = interpreted() and arrays[0].dtype == jnp.bfloat16
        static["MASKED"] = arrays[3] is not None
        static["FENCED"] = not interpreted() and fenced(self.config, capability())
        tokens, others = arrays[:3], [1 if x is None else x for x in arrays[3:]]
        plan = [self._own(self.layout.tiles, places), self._own(runs, places), jnp.asarray(self.layout.rows, jnp.int32)]
        grid = (runs.shape[1], (key_heads if self.transposed else heads) * parts, math.ceil(batch / share))
        run = _interpret if interpreted() else _compile
        steps = self.schedule.steps * (heads // key_heads if self.transposed else 1)
        return run(name, [*tokens, table, *plan, *others, batch, share, steps], outputs, grid, static, self.config)

    def _own(self, of_kinds: np.ndarray, places: Any) -> jax.Array:
        """Returns what a device has, of what every kind of device has."""
        if len(of_kinds) == 1:
            return jnp.asarray(of_kinds[0], jnp.int32)
        kind = jnp.asarray(self.layout.kinds, jnp.int32)[tuple(places)]
        return jax.lax.dynamic_index_in_dim(jnp.asarray(of_kinds, jnp.int32), kind, keepdims=False)

    def static(
        self, heads: int, bias_heads: int, channels: int, key_heads: int | None = None, values: int | None = None
    ) -> dict[str, Any]:
        """Returns the compile-time arguments that all kernels share; key heads and channels of values are the same if None."""
        plan, key_heads, values = self.layout, key_heads or heads, values or channels
        queries, keys = plan.tokens, plan.halo_tokens
        if self.transposed:
            queries, keys = keys, queries
        tokens = {
            "QUERY": (queries, heads, channels, power_of_two(channels)),
            "KEY": (keys, key_heads, channels, power_of_two(channels)),
            "VALUE": (keys, key_heads, values, power_of_two(values)),
            "OUT": (queries, heads, values, power_of_two(values)),
        }
        return tokens | {
            "SCALE": self.logits.scale,
            "SOFT_CAP": self.logits.soft_cap or 0.0,
            "TILE": plan.tile,
            "BLOCK": plan.block,
            "BLOCKS": plan.blocks,
            "STEPS": plan.steps,
            "HALO_STEPS": plan.halo_steps,
            "RINGS": sum(plan.rings, ()),
            "FIELDS": plan.tiles.shape[2],
            "BIAS_HEADS": bias_heads,
            "T": self.config.slots,
            "K": self.config.chunk,
            "CHUNKS": self.schedule.chunks,
            "RESIDENT": self.config.resident and not (self.transposed and heads > key_heads),
            "WIDE": any(length * n * padded >= 2**31 for length, n, _, padded in tokens.values()),
            "PRECISION": self.precision,
            "UPCAST": False,
            "FENCED": False,
            "MASKED": False,
        }


def fenced(config: Config, capability: int) -> bool:
    """Returns whether copies to shared memory need a fence: where products read it by themselves (wgmma: Hopper, 64 rows).

    NVIDIA's PTX ISA asks for one, under "Async Proxy"; Triton 3.6 has none after copies that run ahead, newer ones do.
    """
    return capability // 10 == 9 and config.slots >= 64


def interpreted() -> bool:
    """Returns whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def device() -> jax.Device:
    """Returns the device that a program traced now would run on by default."""
    chosen = jax.config.values["jax_default_device"]
    if isinstance(chosen, str):
        return jax.devices(chosen)[0]
    return chosen or jax.devices()[0]


def device_kind() -> str:
    """Returns the kind of that device, such as "NVIDIA H200"."""
    return device().device_kind


def capability() -> int:
    """Returns the compute capability of that device, times ten; the interpreter stands for Hopper."""
    return 90 if interpreted() else round(10 * float(device().compute_capability))


def multiprocessors() -> int:
    """Returns how many multiprocessors that device has; the interpreter stands for an H100."""
    return getattr(device(), "core_count", None) or 132


def float32_products() -> str:
    """Returns how float32 matrices are multiplied: as three TF32 products, close to float32, or as one where JAX is told so."""
    return "tf32" if jax.config.values["jax_default_matmul_precision"] in _ONE_PASS else "tf32x3"


def _compile(name, arguments, outputs, grid, static, config: Config):
    from natjax_kernels.triton import kernels

    return _jax_triton().triton_call(
        *arguments,
        kernel=getattr(kernels, name),
        out_shape=outputs,
        grid=grid,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        compute_capability=capability(),
        **static,
    )


def _jax_triton():
    """Imports jax_triton, of the gpu extra; its import empties TRITON_CACHE_DIR, with which Triton's own launches would fail."""
    name = "TRITON_CACHE_DIR"
    before = os.environ.get(name)
    import jax_triton  # ty: ignore[import-not-found]

    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before  # jax_triton reads it nowhere
    return jax_triton


def _interpret(name, arguments, outputs, grid, static, config: Config):
    from natjax_kernels.triton import kernels
    from natjax_kernels.triton.interpret import run

    scalars = {i: x for i, x in enumerate(arguments) if isinstance(x, int)}
    call = functools.partial(run, getattr(kernels, name), grid, scalars, static, outputs)
    return jax.pure_callback(call, outputs, *(x for x in arguments if not isinstance(x, int)))
