"""What others take for the same on the same GPU, in PyTorch: flex_attention, dense attention by cuDNN, Swin and ConvNeXt.

flex_attention gets the window as a block mask (tokens in row-major order) and the bias as a score modification, compiled. Dense
attention is over the whole map, without a bias: more work than the window asks for, and the fastest there is for it. Work is
timed by events around replays of a captured CUDA graph, or around plain calls where it cannot be captured (`graph` says so).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu.cases import Case, levels
from benchmarks.gpu.timing import rotation
from benchmarks.harness import Report
from benchmarks.torch_models import build

BATCH, SIDE = 128, 224


def measure(report: Report, rehearse: bool, threads: int) -> None:
    """Adds rows per peer; the models first, as the comparison of whole models needs them."""
    cases = [Case("rehearsal", 1, (8, 9), 1, 16, (3, 3), 2)] if rehearse else levels(128, 2, "tiny", True)
    cases = sorted(cases, key=lambda case: case.dilation)
    plain = [case for case in cases if rehearse or case.dilation == 1]  # dilation is nothing to dense attention

    def model(name: str, what: str) -> None:
        report.measure(lambda: model_row(name, what, rehearse), peer=name, what=what)

    def attention(peer: str, what: str, case: Case) -> None:
        labels = {"peer": peer, "case": case.name, "dtype": "bfloat16", "bias": peer == "flex_attention"}
        report.measure(lambda: attention_row(peer, case, what, rehearse), what=what, **labels)

    model("swin_tiny", "inference")
    for case in plain:
        attention("flex_attention", "forward", case)
    for peer, what in (("flex_attention", "both"), ("cudnn_dense", "forward"), ("cudnn_dense", "both")):
        if not (rehearse and peer == "flex_attention"):  # on CPUs it has no backward
            for case in plain:
                attention(peer, what, case)
    model("swin_tiny", "training step")
    model("convnext_tiny", "inference")
    for case in cases:
        if case not in plain:
            attention("flex_attention", "forward", case)
    model("convnext_tiny", "training step")


def attention_row(peer: str, case: Case, what: str, rehearse: bool) -> dict[str, Any]:
    """Times one peer on one case."""
    import torch

    place = "cpu" if rehearse else "cuda"
    sets = 2 if rehearse else rotation(case.nbytes(3, "bfloat16"))
    tokens = math.prod(case.spatial)
    shape = (case.batch, case.heads, tokens, case.channels)  # contiguous as it wants it, which costs us nothing here
    dtype = torch.float32 if rehearse else torch.bfloat16
    inputs = [[torch.randn(shape, device=place, dtype=dtype) for _ in range(4)] for _ in range(sets)]
    spans = [2 * k - 1 for k in case.kernel_size]
    rpb = torch.randn((case.heads, *spans), device=place, dtype=dtype)
    attend = flex(case, rpb, rehearse) if peer == "flex_attention" else dense(rehearse)
    if what == "both":
        leaves = [rpb] if peer == "flex_attention" else []
        for tensor in (*(x for one in inputs for x in one[:3]), *leaves):
            tensor.requires_grad_()
    error = float((attend(*inputs[0][:3]) - window_reference(case, inputs[0], rpb)).abs().max()) if rehearse else None

    def run() -> None:
        for query, key, value, d_out in inputs:
            out = attend(query, key, value)
            if what == "both":
                torch.autograd.grad(out, [query, key, value, *leaves], d_out)

    with torch.set_grad_enabled(what == "both"):
        row = timed(run, sets, rehearse)
    return row | ({"largest_error": error} if peer == "flex_attention" and rehearse else {})


def flex(case: Case, rpb: Any, rehearse: bool) -> Callable:
    """Returns flex_attention with the window and the bias of a case: windows shift inward, dilation by residue classes."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    (height, width), (k, _), d = case.spatial, case.kernel_size, case.dilation
    tokens = height * width

    def axis_start(position, length):
        group = (length - position % d + d - 1) // d  # tokens of its residue class
        return torch.clamp(position // d - k // 2, min=0).minimum(group - k)

    def sees(query, key, length):
        offset = key // d - axis_start(query, length)
        return (query % d == key % d) & (offset >= 0) & (offset < k)

    def mask(b, h, query, key):
        return sees(query // width, key // width, height) & sees(query % width, key % width, width)

    def bias(score, b, h, query, key):
        y = torch.clamp((key // width) // d - (query // width) // d + k - 1, 0, 2 * k - 2)
        x = torch.clamp((key % width) // d - (query % width) // d + k - 1, 0, 2 * k - 2)
        return score + rpb[h, y, x]

    blocks = create_block_mask(mask, None, None, tokens, tokens, device=str(rpb.device))
    if rehearse:
        return lambda q, key, v: flex_attention(q, key, v, score_mod=bias, block_mask=blocks)
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, key, v: compiled(q, key, v, score_mod=bias, block_mask=blocks)


def window_reference(case: Case, tensors: Sequence[Any], rpb: Any) -> Any:
    """Returns what the op makes of PyTorch's tensors, to see that the peer computes the same."""
    import jax.numpy as jnp
    import torch

    from natjax_kernels import neighborhood_attention

    def ours(x):
        moved = x.detach().transpose(1, 2).reshape(case.shape)
        return jnp.asarray(moved.numpy())

    bias = jnp.asarray(rpb.detach().numpy())
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
    model = build(name, rehearse).to(place)
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


def timed(run: Callable, calls: int, rehearse: bool, *, capture: bool = True, samples: int = 15) -> dict[str, Any]:
    """Returns the median microseconds of one of the `calls` in a run, their spread, and peak memory."""
    import torch

    if rehearse:
        times = []
        for _ in range(4):
            started = time.perf_counter()
            run()
            times.append((time.perf_counter() - started) * 1e6 / calls)
        return _statistics(times[1:]) | {"graph": False}
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
    replay()
    times = []
    for _ in range(samples):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(4):
            replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (4 * calls))
    return _statistics(times) | {"graph": graph, "peak_bytes": peak}


def _statistics(times: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"microseconds": round(middle, 2), "spread_microseconds": round(high - low, 2)}
