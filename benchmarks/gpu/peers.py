"""What others take on the same GPU, in PyTorch: NATTEN, flex_attention, dense attention by cuDNN, Swin and ConvNeXt.

NATTEN, of 0.20 and newer, has no bias, and chooses its kernel by the GPU. flex_attention gets the window as a block mask (tokens
in row-major order) and the bias as a score modification, compiled. Dense attention is over the whole map, without a bias: more
work than the window asks for, and the fastest there is for it. Replays of a captured CUDA graph are timed, or plain calls where
it cannot be captured (`graph` says so).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.calls import WHAT, groups, rotation
from benchmarks.cpu.peers import missing, other, run_of
from benchmarks.harness import Options, Report
from benchmarks.timing import in_flight, spread
from natjax_kernels.cases import Case

BATCH, SIDE = 128, 224


def measure(report: Report, options: Options) -> None:
    """Adds rows per peer, the most telling first: compiling takes most of the time, and not all of it may be there."""
    cases, small = groups(options), options.small

    def model(name: str, what: str) -> None:
        if options.wants(f"{name}_tiny"):
            report.measure(functools.partial(model_row, name, what, small), peer=f"{name}_tiny", what=what)

    def attention(peer: str, group: str, dtype: str) -> None:
        for case, what in itertools.product(cases[group], WHAT):
            labels = {"peer": peer, "case": case.name, "dtype": dtype, "what": what}
            work = functools.partial(attention_row, peer, case, dtype, what, small)
            report.measure(work, **labels, bias=peer == "flex_attention" and case.bias)

    def compiling_nothing(group: str, dtype: str) -> None:
        attention("natten", group, dtype)
        if group != "dilated":  # which is nothing to dense attention
            attention("cudnn_dense", group, dtype)

    compiling_nothing("tiny", "bfloat16")
    compiling_nothing("dilated", "bfloat16")
    model("swin", "inference")
    attention("flex_attention", "tiny", "bfloat16")
    model("swin", "training step")
    model("convnext", "inference")
    for group in cases:
        if group not in ("tiny", "dilated"):
            compiling_nothing(group, "bfloat16")
        if group != "tiny":
            attention("flex_attention", group, "bfloat16")
    model("convnext", "training step")
    for group in cases:
        compiling_nothing(group, "float16")
        attention("flex_attention", group, "float16")


def attention_row(peer: str, case: Case, dtype: str, what: str, small: bool) -> dict[str, Any]:
    """Times one peer on one case, in a rehearsal in float32."""
    if small and peer == "flex_attention" and what == "both":
        return {"skipped": "flex_attention has no backward on a CPU"}
    if peer == "natten" and (lacking := without_natten(small)):
        return {"skipped": lacking}
    place, kind = ("cpu", torch.float32) if small else ("cuda", getattr(torch, dtype))
    sets = 2 if small else rotation(case, dtype)
    shape = (case.batch, case.heads, math.prod(case.spatial), case.channels)  # contiguous, as each wants it
    shape = case.shape if peer == "natten" else shape
    make = functools.partial(torch.randn, device=place, dtype=kind, requires_grad=what == "both")
    inputs = [[make(shape) for _ in range(4)] for _ in range(sets)]
    flexible = peer == "flex_attention"
    leaves = [make(case.rpb_shape)] if flexible and case.bias else []
    if flexible:
        attend = flex(case, *(leaves or [None]), place, compiled=not small)
    else:
        attend = natten(case) if peer == "natten" else dense(small)

    def run() -> None:
        for query, key, value, d_out in inputs:
            out = attend(query, key, value)
            if what == "both":
                torch.autograd.grad(out, [query, key, value, *leaves], d_out.detach())

    with torch.set_grad_enabled(what == "both"):
        times, about = timed(run, sets, small)
    return spread(times, "microseconds") | about


def flex(case: Case, rpb: Any, place: str, compiled: bool) -> Callable:
    """Returns flex_attention with the window and the bias of a case: windows shift inward, dilation by residue classes."""
    spatial, kernel, d = case.spatial, case.window.kernel_size, case.window.dilation[0]

    def coordinates(token):
        inner = []
        for length in reversed(spatial[1:]):
            inner.append(token % length)
            token = token // length
        return [token, *reversed(inner)]

    def mask(b, h, query, key):
        sees = query >= 0
        for q, at, length, k in zip(coordinates(query), coordinates(key), spatial, kernel, strict=True):
            group = (length - q % d + d - 1) // d  # tokens of its residue class
            offset = at // d - torch.clamp(q // d - k // 2, min=0).minimum(group - k)
            sees = sees & (q % d == at % d) & (offset >= 0) & (offset < k)
        return sees

    def bias(score, b, h, query, key):
        offsets = [
            torch.clamp(at // d - q // d + k - 1, 0, 2 * k - 2)
            for q, at, k in zip(coordinates(query), coordinates(key), kernel, strict=True)
        ]
        return score + rpb[(h, *offsets)]

    options = {"score_mod": None if rpb is None else bias, "block_mask": block_mask(mask, math.prod(spatial), place)}
    torch._dynamo.reset()
    attend = flex_attention.flex_attention
    return functools.partial(torch.compile(attend, dynamic=False) if compiled else attend, **options)


def block_mask(mask: Callable, tokens: int, place: str, side: int = 128, rows: int = 8) -> Any:
    """Returns the block mask of all tokens, made of a few rows of blocks at a time.

    PyTorch's own create_block_mask has all pairs of tokens in memory at once, more than 100 GB for the largest case.
    """
    blocks = math.ceil(tokens / side)
    keys = torch.arange(blocks * side, device=place)
    counts = []
    for queries in keys[:, None].split(rows * side):
        seen = mask(None, None, queries, keys) & (queries < tokens) & (keys < tokens)
        counts.append(seen.view(-1, side, blocks, side).sum((1, 3)))
    seen = torch.cat(counts)[None, None]

    def listed(wanted):  # how many blocks of a row there are, and which, these first
        return wanted.sum(-1, dtype=torch.int32), wanted.int().argsort(dim=-1, descending=True, stable=True).int()

    full = seen == side * side
    partial = (seen > 0) & ~full
    return flex_attention.BlockMask.from_kv_blocks(
        *listed(partial), *listed(full), BLOCK_SIZE=side, mask_mod=mask, seq_lengths=(tokens, tokens)
    )


def without_natten(small: bool) -> str | None:
    """Returns why NATTEN cannot be measured, or None where it can."""
    if small or not importlib.util.find_spec("natten"):
        return "NATTEN's kernels need a GPU" if small else "natten cannot be imported"
    module = importlib.import_module("natten")
    if not hasattr(module, "na2d"):
        return f"this is for NATTEN 0.20 and newer, and {module.__version__} is installed"
    return None if module.HAS_LIBNATTEN else "natten is installed without its kernels, libnatten"


def natten(case: Case) -> Callable:
    """Returns NATTEN's attention with the window of a case, without its bias."""
    return functools.partial(
        getattr(importlib.import_module("natten"), f"na{len(case.spatial)}d"), **case.window_options()
    )


def dense(small: bool) -> Callable:
    """Returns dense attention by cuDNN."""

    def run(query, key, value):
        with sdpa_kernel(SDPBackend.MATH if small else SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(query, key, value)

    return run


def model_row(name: str, what: str, small: bool) -> dict[str, Any]:
    """Times a model of transformers, compiled; bfloat16 weights in inference, autocast and AdamW in training."""
    if lacking := missing(name):
        return {"skipped": lacking}
    place, batch, side = ("cpu", 2, 64) if small else ("cuda", BATCH, SIDE)
    train, dtype = what == "training step", torch.float32 if what == "training step" else torch.bfloat16
    model = other(name, small).to(place, dtype)
    images = torch.randn((batch, 3, side, side), device=place, dtype=dtype)
    times, about = timed(run_of(model, images, train, compiled=not small), 1, small, capture=not train)
    return spread(times) | {"images_per_second": round(batch / statistics.median(times), 1)} | about


def timed(run: Callable, calls: int, small: bool, *, capture: bool = True) -> tuple[list[float], dict[str, Any]]:
    """Returns the seconds of one of the `calls` in a run, sample by sample; whether it is a graph, and peak memory."""
    if small:
        return in_flight(run, lambda _: None, calls=calls, seconds=0), {"graph": False}
    stream = torch.cuda.Stream()  # captures need a warm-up beside the default stream
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    peak, replay = torch.cuda.max_memory_allocated(), run
    if capture:
        with contextlib.suppress(RuntimeError):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            replay = graph.replay
        torch.cuda.synchronize()
    times = in_flight(replay, lambda _: torch.cuda.synchronize(), calls=calls, seconds=2.0)
    return times, {"graph": replay is not run, "peak_bytes": peak}
