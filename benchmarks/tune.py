"""Finds the fastest configurations of the fused kernels on this GPU and writes them into configs.json, in at most 9 minutes.

For every shape of NAT and DiNAT and every kernel, the configurations that the estimate likes best and those that benchmarks.gpu
has beside it are timed, the kernel by itself; then the best of them with other warps, programs at a time, stages and chunks, and
alternatives with other programs. A configuration whose results differ from those of `xla` is passed over. The file is written
after every kernel, so a run that is stopped keeps what it found, and entries of other kinds of device stay. Each kernel has an
equal part of the time that is left.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import time

from benchmarks.harness import CASES, Options, describe
from natjax.atomic import check_writable
from natjax.cli._arguments import not_negative_int, positive_int, positive_seconds


def main() -> None:
    """Tunes the cases asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=[], help=CASES)
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device-kind", help="name under which to file the result (default: that of this device)")
    parser.add_argument("--configs", type=pathlib.Path, help="file to update (default: that of the package)")
    parser.add_argument("--most", type=not_negative_int, default=24, help="of the estimate's configurations to try")
    parser.add_argument(
        "--seconds", type=positive_seconds, default=540, help="time limit, after which nothing new starts"
    )
    parser.add_argument(
        "--threads", type=positive_int, default=min(16, os.cpu_count() or 1), help="that compile side by side"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="a tiny case in Triton's interpreter, into another file"
    )
    args = parser.parse_args()
    if args.rehearse:  # to be said before Triton is imported
        os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.gpu.alone import Alone
    from benchmarks.gpu.tuner import load, merge, tune
    from benchmarks.provenance import KERNELS as PACKAGE
    from natjax_kernels.cases import Case, published
    from natjax_kernels.fused.configurations import KERNELS
    from natjax_kernels.triton.launch import device_kind

    cases = [case for case in published() if Options(cases=args.cases).wants(case.name)]
    if args.rehearse:
        cases = [Case("rehearsal", 1, (8, 8), 1, 8, 3)]
    if not cases:
        raise SystemExit(f"No case is named like {args.cases}; --list without --cases prints the names.")
    if args.list:
        print("\n".join(case.name for case in cases))
        return
    path = args.configs or (pathlib.Path(tempfile.mkdtemp()) if args.rehearse else PACKAGE / "triton") / "configs.json"
    try:  # before the first kernel is tuned, which would be lost
        check_writable(path)
        load(path)
    except (OSError, ValueError) as error:
        parser.error(f"--configs: {error}")
    most, threads = (2, 1) if args.rehearse else (args.most, args.threads)
    kind, started, count = args.device_kind or device_kind(), time.monotonic(), 0
    jobs = [(case, dtype, kernel) for dtype in args.dtypes for case in cases for kernel in KERNELS]
    for i, (case, dtype, kernel) in enumerate(jobs):
        elapsed = time.monotonic() - started
        if elapsed > args.seconds:
            print(f"The time limit of {args.seconds:.0f} s is reached; {len(jobs) - i} of {len(jobs)} are left.")
            break
        print(f"[{i + 1}/{len(jobs)}, {elapsed:.0f} of {args.seconds:.0f} s] {case.name} {dtype} {kernel}", flush=True)
        if kernel == KERNELS[0]:
            try:
                alone = Alone(case, dtype)
            except Exception as error:  # the other cases may do
                alone = None
                print(f"    {describe(error)}", flush=True)
        deadline = started + elapsed + (args.seconds - elapsed) / (len(jobs) - i)
        if alone and (found := tune(alone, kernel, most, deadline, threads)):
            merge(path, kind, *found)
            count += 1
    if not count:
        raise SystemExit(f"Nothing could be timed; {path} is as it was.")
    print(f"{count} configurations for {kind!r} are in {path}.")


if __name__ == "__main__":
    main()
