"""What others take for the same on the same GPU, in PyTorch: flex_attention, dense attention by cuDNN, Swin and ConvNeXt.

flex_attention gets the window as a block mask (tokens in row-major order) and the bias as a score modification, compiled. Dense
attention is over the whole map, without a bias: more work than the window asks for, and the fastest there is for it. Work is
timed by events around replays of a captured CUDA graph, or around plain calls where it cannot be captured (`graph` says so).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cpu.peers import other
from benchmarks.gpu.cases import Case, Options, groups, rotation
from benchmarks.harness import Report
from benchmarks.timing import interleaved, quartiles, repeated

BATCH, SIDE = 128, 224


def measure(report: Report, options: Options) -> None:
    """Adds rows per peer, the most telling first: compiling takes most of the time, and not all of it may be there."""
    cases, rehearse = groups(options), options.rehearse

    def model(name: str, what: str) -> None:
        if options.wants(f"{name}_tiny"):
            report.measure(functools.partial(model_row, name, what, rehearse), peer=f"{name}_tiny", what=what)

    def attention(group: str, dtype: str) -> None:
        # Dilation is nothing to dense attention. On CPUs flex_attention has no backward.
        peers = ("flex_attention",) if group == "dilated" else ("flex_attention", "cudnn_dense")
        for peer, case, what in itertools.product(peers, cases[group], ("forward", "both")):
            if not (rehearse and peer == "flex_attention" and what == "both"):
                labels = {"peer": peer, "case": case.name, "dtype": dtype, "what": what}
                work = functools.partial(attention_row, peer, case, dtype, what, rehearse)
                report.measure(work, **labels, bias=peer == "flex_attention" and case.bias)

    model("swin", "inference")
    attention("tiny", "bfloat16")
    model("swin", "training step")
    model("convnext", "inference")
    for group in cases:
        if group != "tiny":
            attention(group, "bfloat16")
    model("convnext", "training step")
    for group in cases:
        attention(group, "float16")


def attention_row(peer: str, case: Case, dtype: str, what: str, rehearse: bool) -> dict[str, Any]:
    """Times one peer on one case, in a rehearsal in float32 and beside what the op makes of it."""
    import torch

    place = "cpu" if rehearse else "cuda"
    sets = 2 if rehearse else rotation(case, dtype)
    shape = (case.batch, case.heads, math.prod(case.spatial), case.channels)  # contiguous, as it wants it
    make = functools.partial(torch.randn, device=place, dtype=torch.float32 if rehearse else getattr(torch, dtype))
    inputs = [[make(shape) for _ in range(4)] for _ in range(sets)]
    flexible = peer == "flex_attention"
    rpb = make(case.rpb_shape) if flexible and case.bias else None
    attend = flex(case, rpb, place, compiled=not rehearse) if flexible else dense(rehearse)
    leaves = [] if rpb is None else [rpb]
    if what == "both":
        for tensor in (*(x for one in inputs for x in one[:3]), *leaves):
            tensor.requires_grad_()

    def run() -> None:
        for query, key, value, d_out in inputs:
            out = attend(query, key, value)
            if what == "both":
                torch.autograd.grad(out, [query, key, value, *leaves], d_out)

    with torch.set_grad_enabled(what == "both"):
        row = timed(run, sets, rehearse)
        if rehearse and flexible:
            row["largest_error"] = float((attend(*inputs[0][:3]) - window_reference(case, inputs[0], rpb)).abs().max())
    return row


def flex(case: Case, rpb: Any, place: str, compiled: bool) -> Callable:
    """Returns flex_attention with the window and the bias of a case: windows shift inward, dilation by residue classes."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

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
    if not compiled:
        return functools.partial(flex_attention, **options)
    torch._dynamo.reset()
    return functools.partial(torch.compile(flex_attention, dynamic=False), **options)


def block_mask(mask: Callable, tokens: int, place: str, side: int = 128, rows: int = 8) -> Any:
    """Returns the block mask of all tokens, made of a few rows of blocks at a time.

    PyTorch's own create_block_mask has all pairs of tokens in memory at once, more than 100 GB for the largest case.
    """
    import torch
    from torch.nn.attention.flex_attention import BlockMask

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
    return BlockMask.from_kv_blocks(
        *listed(partial), *listed(full), BLOCK_SIZE=side, mask_mod=mask, seq_lengths=(tokens, tokens)
    )


def window_reference(case: Case, tensors: Sequence[Any], rpb: Any) -> Any:
    """Returns what the op makes of PyTorch's tensors, to see that the peer computes the same."""
    import jax.numpy as jnp
    import torch

    from natjax_kernels import neighborhood_attention

    def ours(x):
        moved = x.detach().transpose(1, 2).reshape(case.shape)
        return jnp.asarray(moved.numpy())

    bias = None if rpb is None else jnp.asarray(rpb.detach().numpy())
    out = neighborhood_attention(*map(ours, tensors[:3]), rpb=bias, **case.options(), implementation="reference")
    return torch.tensor(out.tolist()).reshape(case.batch, -1, case.heads, case.channels).transpose(1, 2)


def dense(rehearse: bool) -> Callable:
    """Returns dense attention by cuDNN."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def run(query, key, value):
        with sdpa_kernel(SDPBackend.MATH if rehearse else SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(query, key, value)

    return run


def model_row(name: str, what: str, rehearse: bool) -> dict[str, Any]:
    """Times a model of transformers, compiled; bfloat16 weights in inference, autocast and AdamW in training."""
    import torch

    place, batch, side = ("cpu", 2, 64) if rehearse else ("cuda", BATCH, SIDE)
    model = other(name, rehearse).to(place)
    images = torch.randn((batch, 3, side, side), device=place)
    labels = torch.arange(batch, device=place) % 10
    compiled = model if rehearse else torch.compile(model)
    if what == "inference":
        model.eval().to(torch.bfloat16)
        images = images.to(torch.bfloat16)
        with torch.inference_mode():
            row = timed(lambda: compiled(images).logits, 1, rehearse)
    else:
        model.train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=not rehearse)

        def step() -> None:
            with torch.autocast(place, torch.bfloat16):
                logits = compiled(images).logits
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        row = timed(step, 1, rehearse, capture=False)
    milliseconds = row.pop("microseconds") / 1e3
    speed = {"milliseconds": round(milliseconds, 3), "images_per_second": round(batch / milliseconds * 1e3, 1)}
    return {**speed, "spread_milliseconds": round(row.pop("spread_microseconds") / 1e3, 3), **row}


def timed(run: Callable, calls: int, rehearse: bool, *, capture: bool = True) -> dict[str, Any]:
    """Returns the median microseconds of one of the `calls` in a run, their spread, and peak memory."""
    import torch

    if rehearse:
        (times,) = interleaved({"run": run}, seconds=0).values()
        return _statistics([time * 1e6 / calls for time in times]) | {"graph": False}
    stream = torch.cuda.Stream()  # captures need a warm-up beside the default stream
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    replay, graph = run, False
    if capture:
        try:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                run()
            replay, graph = captured.replay, True
        except RuntimeError:
            torch.cuda.synchronize()

    def sample(replays: int) -> float:
        """Milliseconds of a replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / replays

    replays = max(1, min(4, round(20 / sample(1))))  # some 20 ms a sample at most
    times = repeated(lambda: sample(replays) * 1e3 / calls, most=15, limit=2.0)
    return _statistics(times) | {"graph": graph, "peak_bytes": peak}


def _statistics(times: list[float]) -> dict[str, float]:
    middle, apart = quartiles(times)
    return {"microseconds": round(middle, 2), "spread_microseconds": round(apart, 2)}
