"""What the fused kernels take of a GPU, by compiling them without one: `python tests/deviceless/resources.py` (minutes).

Compiles every kernel for every architecture and the shapes below with the configurations that natjax would choose, and reads
registers, stack (spilled registers live there), shared memory and instructions from the machine code. Prints a table and writes
benchmarks/results/resources.json. Needs Triton, whose wheel carries the assembler and disassembler; no GPU, no CUDA. Numbers to
publish come from the Triton of the `gpu` extra, which is in the environment of `make test-deviceless`.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from natjax_kernels import cases
from natjax_kernels.cases import DILATIONS, levels

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "resources.json"
ARCHITECTURES = (80, 89, 90, 100, 120)  # A100, L4, H100 and H200, B200, RTX 5090
MATRIX_INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "UTCOMMA", "UTCQMMA")

# name: (case of the op, dtype)
LEVELS = {
    f"level {case.name.split()[1]} dilation {case.dilation}": (case, "bfloat16") for case in levels(1, 2, "", DILATIONS)
}
# DiNAT-Large at 384 pixels, with kernel 7 and with kernel 11.
LARGE = {
    f"384 px {case.name.split(' dilation')[0]} kernel {kernel} dilation {case.dilation}": (case, "bfloat16")
    for kernel, dilations in ((7, (13, 6, 3, 1)), (11, DILATIONS))
    for case in levels(1, 6, "", dilations, 96, kernel)
}
LEVEL_1 = LEVELS["level 1 dilation 1"][0]


def _level_1(dtype="bfloat16", **changes):
    return dataclasses.replace(LEVEL_1, **changes), dtype


OTHERS = {
    "level 1 float16": _level_1("float16"),
    **{f"level {i} float32": (LEVELS[f"level {i} dilation 1"][0], "float32") for i in (1, 2, 3, 4)},
    "kernel 11": _level_1(kernel_size=11),
    "kernel 13": _level_1(kernel_size=13),
    **{f"{d} channels": _level_1(channels=d) for d in (8, 16, 64, 128, 256)},
    "64 channels level 4": (dataclasses.replace(LEVELS["level 4 dilation 1"][0], channels=64), "bfloat16"),
    **{f"{d} channels float32": _level_1("float32", channels=d) for d in (64, 128)},
    "128 channels float32 no bias": _level_1("float32", channels=128, bias=False),
    "no bias": _level_1(bias=False),
    "one key head, masked": _level_1(key_heads=1, masked=True),
    "level 4 masked": (dataclasses.replace(LEVELS["level 4 dilation 1"][0], masked=True), "bfloat16"),
    "values of 64 channels": _level_1(value_channels=64),
    "capped": _level_1(logits_soft_cap=30.0),
    "ring": _level_1(periodic=(False, True)),
    "coarser queries": _level_1(queries=(28, 28)),
    **{case.name: (case, "bfloat16") for case in cases.LARGE},
}
SHAPES = LEVELS | LARGE | OTHERS
_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def launches(shape, architecture, multiprocessors=132):
    """Returns name, launch and flags of every kernel that a training step runs on a shape, as it would on a GPU."""
    from natjax_kernels.fused.configurations import KERNELS, Case
    from natjax_kernels.triton.choice import estimate
    from natjax_kernels.triton.launch import Launch

    case, dtype = shape
    problem = case.problem(dtype)
    for name in KERNELS:
        arrays = problem.query, problem.key, problem.value, problem.rpb, problem.key_mask
        described = Case.of(name, problem.window, problem.logits, architecture, *arrays)
        config, precision = estimate(described), "tf32x3" if dtype == "float32" else "ieee"
        transposed = name == "bwd_dkv"
        launch = Launch(case.spatial, problem.window, problem.logits, config, multiprocessors, precision, transposed)
        if name != "bwd_dq":
            yield name, launch, {}
        elif case.bias and not config.resident:
            yield name, launch, {"D_QUERY": True, "D_TABLE": False, "D_LSE": False}
            yield name, launch, {"D_QUERY": False, "D_TABLE": True, "D_LSE": False}
        else:
            yield name, launch, {"D_QUERY": True, "D_TABLE": case.bias, "D_LSE": False}


def band_launches(shape, architecture, multiprocessors=132):
    """Returns the same of the band design, which no estimate chooses, where it can compute the shape."""
    from natjax_kernels.fused.band import configurations, why_not
    from natjax_kernels.fused.configurations import Case
    from natjax_kernels.triton.band_launch import BandLaunch

    case, dtype = shape
    problem = case.problem(dtype)
    arrays = problem.query, problem.key, problem.value, problem.rpb, problem.key_mask
    described = Case.of("fwd", problem.window, problem.logits, architecture, *arrays)
    for config in configurations(described):
        if why_not(described, config) is None:
            yield "band", BandLaunch(case.spatial, case.window, problem.logits, config, multiprocessors), {}


def _source(name, launch, flags, shape, architecture):
    """Returns what Triton compiles."""
    from triton.compiler import ASTSource

    from natjax_kernels.triton import band_launch, kernels
    from natjax_kernels.triton.launch import fenced

    case, dtype = shape
    if name == "band":
        return band_launch.source(launch.static(case.heads, case.heads if case.bias else 1, case.channels), dtype)
    function = getattr(kernels, name)
    bias_heads = case.heads if case.bias else 1
    constants = launch.static(case.heads, bias_heads, case.channels, case.key_heads, case.value_channels) | flags
    constants |= {"FENCED": fenced(launch.config, architecture), "MASKED": case.masked}
    absent = {"d_lse"} if case.masked else {"d_lse", "hidden"}
    constants |= dict.fromkeys(absent & set(function.arg_names), 1)  # as `Launch` passes what is not there
    types = dict.fromkeys(("query", "key", "value", "out", "d_out", "d_query", "d_key", "d_value"), f"*{_TYPES[dtype]}")
    types |= dict.fromkeys(("tiles", "runs", "rows"), "*i32")
    types |= dict.fromkeys(("maxima", "logs", "statistics", "d_logits", *(["hidden"] if case.masked else [])), "*fp32")
    types |= {"table": "*fp32" if case.bias else "*bf16"}
    types |= dict.fromkeys(("batch", "share", "steps"), "i32")
    signature = {argument: types.get(argument, "constexpr") for argument in function.arg_names}
    return ASTSource(
        fn=function,
        signature=signature,
        constexprs={(function.arg_names.index(argument),): value for argument, value in constants.items()},
        attrs={
            (i,): [["tt.divisibility", 16]] for i, a in enumerate(function.arg_names) if signature[a].startswith("*")
        },
    )


def compile_kernel(name, launch, flags, shape, architecture):
    """Compiles one kernel; returns what it takes and the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget

    config, source = launch.config, _source(name, launch, flags, shape, architecture)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tools / "cuobjdump", flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    registers, stack, local = (int(re.search(rf"{field}:(\d+)", usage)[1]) for field in ("REG", "STACK", "LOCAL"))
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", code, re.MULTILINE)
    counts = collections.Counter(instructions)
    return {
        **dataclasses.asdict(config),
        **flags,
        "slots": config.slots,
        "registers": registers,
        "stack_bytes": stack + local,
        "shared_bytes": compiled.metadata.shared,
        "matrix_instructions": sorted(set(counts) & set(MATRIX_INSTRUCTIONS)),
        "instructions": len(instructions),
        "spills_in_loops": spills_in_loops(code),
    }, code


def loops(code):
    """Cuts machine code into loops; returns depth and instructions by kind (outside of inner loops) of each, outermost first."""
    lines, spans = _lines_and_loops(code)
    found = []
    for low, high in spans:
        inside = [(a, b) for a, b in spans if low <= a and b <= high and (a, b) != (low, high)]
        body = [t for a, t in lines if low <= a <= high and not any(x <= a <= y for x, y in inside)]
        depth = sum(a <= low and high <= b for a, b in spans)
        found.append((depth, {"instructions": len(body), "exponentials": sum("MUFU.EX2" in t for t in body)}))
    return found


def spills_in_loops(code):
    """Returns how many instructions store or load spilled registers in the innermost of the loops that compute weights."""
    lines, spans = _lines_and_loops(code)
    of_weights = [
        (low, high) for low, high in spans if any(low <= a <= high and "MUFU.EX2" in text for a, text in lines)
    ]
    innermost = [
        (low, high)
        for low, high in of_weights
        if not any(low <= a and b <= high and (a, b) != (low, high) for a, b in of_weights)
    ]
    spills = {a for a, text in lines if re.search(r"\b(LDL|STL)\b", text)}
    return sum(any(low <= a <= high for low, high in innermost) for a in spills)


def _lines_and_loops(code):
    """Returns (address, instruction) of machine code, and from where to where its loops go, the longest first."""
    lines = [(int(a, 16), text) for a, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", code, re.MULTILINE)]
    spans = [
        (int(target[1], 16), address)
        for address, text in lines
        if (target := re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)) and int(target[1], 16) < address
    ]
    return lines, sorted(spans, key=lambda span: span[0] - span[1])


def report(architecture, names):
    """Compiles all kernels of the named shapes, in this process."""
    rows = []
    for shape in names:
        for name, launch, flags in (
            *launches(SHAPES[shape], architecture),
            *band_launches(SHAPES[shape], architecture),
        ):
            row, _ = compile_kernel(name, launch, flags, SHAPES[shape], architecture)
            rows.append({"architecture": architecture, "shape": shape, "kernel": name, **row})
    return rows


def report_apart(architecture, names):
    """Does so in a process of its own: what is wrong for an architecture can abort the compiler."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    command = [sys.executable, __file__, "--architecture", str(architecture), "--shapes", *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"Compiling for sm_{architecture} failed with code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _print_table(rows):
    """Prints a line for every kernel of a shape; registers (and spilled bytes, if any) for each of the architectures."""
    print(
        f"| shape | kernel | {' | '.join(f'sm_{a}' for a in ARCHITECTURES)} | shared kB | on sm_90: tile, T x K, warps |"
    )
    print(f"|---|---|{'--:|' * len(ARCHITECTURES)}--:|---|")
    lines = {}
    for row in rows:
        part = {(True, False): " (dquery)", (False, True): " (table)"}.get((row.get("D_QUERY"), row.get("D_TABLE")), "")
        part += {("band", 1): ", one stage"}.get((row["kernel"], row["num_stages"]), "")
        lines.setdefault((row["shape"], row["kernel"] + part), {})[row["architecture"]] = row
    for (shape, kernel), found in lines.items():
        cells = [
            f"{row['registers']}{f' ({spilled} B)' if (spilled := row['stack_bytes']) else ''}"
            if (row := found.get(a))
            else ""
            for a in ARCHITECTURES
        ]
        shared = max(row["shared_bytes"] for row in found.values()) / 1e3
        row = found.get(90)
        tile = " x ".join(map(str, row["tile"])) if row else ""
        config = f"{tile}, {row['slots']} x {row['chunk']}, {row['num_warps']}" if row else ""
        print(f"| {shape} | `{kernel}` | {' | '.join(cells)} | {shared:.0f} | {config} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, help="print the rows of one architecture as JSON; write nothing")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    args = parser.parse_args()
    if args.architecture:
        print(json.dumps(report(args.architecture, args.shapes)))
        return
    rows = [row for architecture in ARCHITECTURES for row in report_apart(architecture, args.shapes)]
    _print_table(rows)
    sys.path.insert(0, str(ROOT))
    from benchmarks.provenance import provenance

    RESULTS.write_text(json.dumps({"provenance": provenance(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
