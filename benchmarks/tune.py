"""Finds the fastest configurations of the fused kernels on this GPU: `python -m benchmarks.tune` writes them into configs.json.

For every shape of NAT and DiNAT and every kernel, the configurations that the estimate likes best are timed inside the op, then
the best of them with other warps and stages. A configuration whose results differ from those of `xla` is passed over. The file is
written after every kernel, so a run that is stopped keeps what it found, and entries of other kinds of device stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

# Rehearsals run in Triton's interpreter, which has to be said before Triton is imported.
REHEARSE = "--rehearse"


def main() -> None:
    """Tunes the cases asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", help="parts of names, such as 'level 1' (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device-kind", help="name under which to file the result (default: that of this device)")
    parser.add_argument("--configs", type=pathlib.Path, help="file to update (default: that of the package)")
    parser.add_argument(
        "--most", type=int, default=24, help="configurations to try of a kernel, besides warps and stages"
    )
    parser.add_argument("--seconds", type=float, default=540, help="time limit")
    parser.add_argument("--threads", type=int, default=8, help="that compile side by side")
    parser.add_argument(
        REHEARSE, action="store_true", help="a tiny case in Triton's interpreter; writes no package file"
    )
    args = parser.parse_args()
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.gpu.cases import Case, published
    from benchmarks.provenance import KERNELS as FOLDER
    from natjax_kernels.fused.configurations import KERNELS
    from natjax_kernels.triton.launch import device_kind

    cases = [Case("rehearsal", 1, (8, 8), 1, 8, (3, 3))] if args.rehearse else published()
    if args.list:
        print("\n".join(case.name for case in cases))
        return
    cases = [case for case in cases if not args.cases or any(part in case.name for part in args.cases)]
    if not cases:
        raise SystemExit(f"No case is named like {args.cases}; --list prints the names.")
    path = args.configs or (
        pathlib.Path(tempfile.mkdtemp()) / "configs.json" if args.rehearse else FOLDER / "configs.json"
    )
    most, threads = (2, 1) if args.rehearse else (args.most, args.threads)
    kind = args.device_kind or device_kind()
    started = time.monotonic()
    jobs = [(case, dtype, kernel) for dtype in args.dtypes for case in cases for kernel in KERNELS]
    for i, (case, dtype, kernel) in enumerate(jobs):
        elapsed = time.monotonic() - started
        if elapsed > args.seconds:
            print(f"The time limit of {args.seconds:.0f} s is reached; {len(jobs) - i} of {len(jobs)} are left.")
            break
        left = f"{elapsed / i * (len(jobs) - i):.0f} s left" if i else "first"
        print(f"[{i + 1}/{len(jobs)}, {left}] {case.name} {dtype} {kernel}", flush=True)
        tuner = Tuner(case, dtype, kernel, threads, started + args.seconds)
        best = tuner.run(most)
        if best is not None:
            merge(path, kind, tuner.key, best)
    print(f"Configurations for {kind!r} are in {path}.")


class Tuner:
    """Times configurations of one kernel for one case, inside the op on inputs of its own."""

    def __init__(self, case, dtype: str, kernel: str, threads: int, deadline: float):
        import jax

        from benchmarks.gpu.timing import fresh_key, rotation
        from natjax_kernels.fused import configurations as config
        from natjax_kernels.plan import Window
        from natjax_kernels.triton.launch import capability

        rank = len(case.spatial)
        window = Window(case.kernel_size, (case.dilation,) * rank, (1,) * rank, (False,) * rank)
        self._tuned = config.Case(kernel, case.spatial, window, case.channels, dtype, case.bias, capability())
        self._case, self._threads, self._deadline = case, threads, deadline
        sets = 1 if case.batch == 1 else rotation(case.nbytes(3, dtype), 4)
        self._arguments = case.arguments(fresh_key()[0], sets, dtype)
        self._expected = jax.jit(functools.partial(self._call, "xla"))(self._arguments[0])
        self._tolerance = 1e-4 if dtype == "float32" else 3e-2

    @property
    def key(self) -> str:
        """The case's name in configs.json."""
        return self._tuned.key

    def run(self, most: int):
        """Returns the fastest configuration, or None where none could be timed."""
        from natjax_kernels.triton.choice import candidates, clocks, estimate

        ranked = sorted(candidates(self._tuned), key=functools.partial(clocks, self._tuned))[:most]
        times = self._times(ranked)
        if not times:
            return None
        best = min(times, key=times.__getitem__)
        times |= self._times([config for config in _variants(best)[:most] if config not in times])
        best, estimated = min(times, key=times.__getitem__), times.get(estimate(self._tuned), math.nan)
        print(f"    {times[best] * 1e6:.1f} us ({estimated * 1e6:.1f} us as estimated) {best}", flush=True)
        return best

    def _times(self, configs: list) -> dict:
        """Compiles configurations side by side, then times them one by one; leaves out what fails and what time ends."""
        from benchmarks.gpu.timing import seconds, side_by_side

        times = {}
        for i in range(0, len(configs), 2 * self._threads):
            if time.monotonic() > self._deadline:
                break
            some = configs[i : i + 2 * self._threads]
            compiled = side_by_side({c: functools.partial(self._compile, c) for c in some}, self._threads)
            for config, program in compiled.items():
                try:
                    results = program()(self._arguments)
                    self._check(results[0])
                    times[config] = seconds(program(), (self._arguments,), calls=len(results), samples=9, limit=0.3)[0]
                except Exception as error:  # too much shared memory, say: the others may do
                    print(f"    {config}: {type(error).__name__}: {str(error)[:160]}", flush=True)
        return times

    def _compile(self, config) -> Callable:
        import jax

        from natjax_kernels.fused.configurations import override

        call = functools.partial(self._call, "triton")
        with override(self._tuned, config):
            program = jax.jit(lambda inputs: [call(one) for one in inputs])
            return program.lower(self._arguments).compile()

    def _call(self, implementation: str, inputs):
        """What needs the kernel: the output, or the gradients that it makes; XLA leaves out what nobody asks for."""
        import jax

        from natjax_kernels import neighborhood_attention

        def op(query, key, value, rpb):
            options = self._case.options()
            return neighborhood_attention(query, key, value, rpb=rpb, **options, implementation=implementation)

        *arguments, d_out = inputs
        if self._tuned.kernel == "fwd":
            return [op(*arguments)]
        d_query, d_key, d_value, d_rpb = jax.vjp(op, *arguments)[1](d_out)
        return [d_query, d_rpb] if self._tuned.kernel == "bwd_dq" else [d_key, d_value]

    def _check(self, results) -> None:
        import jax.numpy as jnp

        for got, right in zip(results, self._expected, strict=True):
            if right is None:
                continue
            right = right.astype("float32")
            error = float(jnp.abs(got.astype("float32") - right).max() / jnp.maximum(1, jnp.abs(right).max()))
            if not error <= self._tolerance:  # NaN is no number to compare
                raise ArithmeticError(f"its results are off by {error:.1e}")


def _variants(config) -> list:
    """Returns a configuration with other warps, stages and chunks."""
    warps = [w for w in (config.num_warps // 2, config.num_warps, config.num_warps * 2) if 1 <= w <= 8]
    found = [dataclasses.replace(config, num_warps=w, num_stages=s) for w in warps for s in (1, 2, 3, 4)]
    chunks = () if config.resident else (config.chunk // 2, config.chunk * 2)
    return found + [dataclasses.replace(config, chunk=c) for c in chunks if 16 <= c <= 128]


def merge(path: pathlib.Path, kind: str, key: str, config) -> None:
    """Sets one entry of the file and leaves the others; the file is sorted, and whole at any time."""
    from benchmarks.harness import write

    content = json.loads(path.read_text()) if path.exists() else {}
    content.setdefault(kind, {})[key] = dataclasses.asdict(config)
    write(path, {device: dict(sorted(entries.items())) for device, entries in sorted(content.items())})


if __name__ == "__main__":
    main()
