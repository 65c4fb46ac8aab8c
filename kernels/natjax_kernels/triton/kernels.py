"""Fused neighborhood attention in Triton: forward, and backward with the gradient of the bias (NAT, arXiv 2204.07143).

A program takes a run of tiles of one class, one head and a share of the batch. Tiles are small dense attention over their halos
with a table of bias-or-minus-infinity; everything about rank, window, dilation and borders is in the layout
(`natjax_kernels.fused.layout`), so no kernel has a branch on them. Halos are worked on in chunks: where they are small and
RESIDENT is set, chunks are unrolled and their table is loaded once per program, else they are a loop whose loads run ahead. Its
`steps` are known at run time only: ptxas unrolls what it can count, and registers then hold half as many programs.
Softmax is online, in base 2: logits and the table's bias are times log2(e). The backward pass subtracts the maximum of the
logits and the logarithm of the sum of weights one after the other: their sum, the log-sum-exp, would be rounded where logits are
large, and weights would not sum to 1. No atomics: every output has one writer, so that results are the same in every run.

    fwd      out, m, log l         tiles of queries and their halos of keys
    bwd_dq   dq, statistics, dS    likewise; dS is summed over the program's tiles and batch entries on chip
    bwd_dkv  dk, dv                tiles of keys and the queries that see them (the transposed layout)

Shapes: tokens [B, L, N, D] as QUERY, KEY, VALUE and OUT say (`natjax_kernels.triton.memory`); maxima m, logs (of the sums of
weights, l) and, with D_LSE, the gradient of the log-sum-exp d_lse [B, N, L] float32; statistics [B, N, L, 4] float32: m, log l,
delta (the sum of out * d_out, less d_lse) and padding; table [rows, N or 1, T, S], a bias in float32; hidden, with MASKED,
[B, L] float32: minus infinity for keys that no query may see, else 0; dS [shares of the batch, runs, chunks or 1, N, 1 or chunks,
T, K] float32. Triples are (z, y, x).
Letters: B batch, L tokens, N heads, D channels, T slots of a tile, S slots of a block in CHUNKS of K, all powers of two but S.
"""

from __future__ import annotations

import triton
import triton.language as tl

from natjax_kernels.triton.memory import (
    elements,
    halo_chunk,
    halo_origin,
    hide,
    image,
    in_table,
    is_owned,
    load_chunk,
    load_tile,
    offsets,
    store_tile,
    stream_table,
)

_LOG2E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-3e38)  # the maximum over nothing but minus infinities must be finite


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Matrix product into float32."""
    if UPCAST:  # Triton's interpreter cannot multiply bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _logits(a, b, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Logits of all pairs of a and b, in base 2, without a bias; SOFT_CAP is 0 for none."""
    products = _dot(a, tl.trans(b), PRECISION, UPCAST)
    if SOFT_CAP != 0:
        return _tanh(products * (SCALE / SOFT_CAP)) * (SOFT_CAP * _LOG2E)
    return products * (SCALE * _LOG2E)


@triton.jit
def _tanh(x):
    """The hyperbolic tangent to 2e-7 of itself: of large x by exponentials, whose difference is rounded where x is small."""
    square = x * x
    # A Chebyshev fit for |x| < 0.6.
    tail = ((-0.00627639 * square + 0.02111622) * square - 0.05387514) * square + 0.13332924
    small = x + x * square * (tail * square - 0.3333333)
    return tl.where(square < 0.36, small, 1 - 2 / (1 + tl.exp2(x * (2 * _LOG2E))))


@triton.jit
def _before_cap(ds, s, SOFT_CAP: tl.constexpr):
    """The gradient of logits before they were capped, from that of the logits `s` in base 2."""
    if SOFT_CAP != 0:
        tanh = s * (1 / (SOFT_CAP * _LOG2E))
        ds = ds * (1 - tanh * tanh)
    return ds


@triton.jit
def _online_softmax(
    q, k, v, bias, m, l, o, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr
):
    """Takes one more chunk of keys into the maximum m, the sum of weights l and the unnormalised output o."""
    s = _logits(q, k, SCALE, SOFT_CAP, PRECISION, UPCAST) + bias.to(tl.float32)
    m_new = tl.maximum(m, tl.max(s, 1))
    p = tl.exp2(s - m_new[:, None])
    alpha = tl.exp2(m - m_new)
    o = o * alpha[:, None] + _dot(p.to(v.dtype), v, PRECISION, UPCAST)
    return m_new, l * alpha + tl.sum(p, 1), o


@triton.jit
def fwd(
    query, key, value, table, tiles, runs, rows, hidden, batch, share, steps, out, maxima, logs,
    SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    STEPS: tl.constexpr, HALO_STEPS: tl.constexpr, RINGS: tl.constexpr, FIELDS: tl.constexpr,
    QUERY: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, OUT: tl.constexpr,
    BIAS_HEADS: tl.constexpr, T: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, RESIDENT: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FENCED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Computes the output and, for the backward pass, the maximum and the sum of every query's weights."""
    run, head, first_entry = tl.program_id(0), tl.program_id(1), tl.program_id(2) * share
    first, last = tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)
    BLOCK_COUNT: tl.constexpr = BLOCKS[0] * BLOCKS[1] * BLOCKS[2]
    GROUP: tl.constexpr = QUERY[1] // KEY[1]
    DV: tl.constexpr = OUT[3]
    first_row = rows + tl.load(tiles + FIELDS * first + 2) * BLOCK_COUNT
    slot = tl.arange(0, T)
    at_table = in_table(table, tl.load(first_row), head, BIAS_HEADS, T, K, CHUNKS)
    resident = ()
    if RESIDENT:
        for c in tl.static_range(CHUNKS):
            resident = resident + (tl.load(at_table + c * K),)
    for t in range(first, last):
        tile = tiles + FIELDS * t
        owned = is_owned(slot, tile, TILE)
        token = tl.where(owned, tl.load(tile) + offsets(slot, TILE, STEPS), 0)
        at_query, at_out = elements(token, head, QUERY, WIDE), elements(token, head, OUT, WIDE)
        halo = halo_origin(tile, FIELDS)
        for b in range(first_entry, min(first_entry + share, batch)):
            q = load_tile(query + image(b, QUERY) + at_query, owned, QUERY)
            m = tl.full([T], _LOWEST, tl.float32)
            l = tl.zeros([T], tl.float32)
            o = tl.zeros([T, DV], tl.float32)
            if RESIDENT:
                for c in tl.static_range(CHUNKS):
                    near = halo_chunk(halo, c, BLOCKS, BLOCK, HALO_STEPS, RINGS, FIELDS, KEY[0], K, CHUNKS)
                    k, v = load_chunk(key, value, b, near, head // GROUP, KEY, VALUE, WIDE, FENCED)
                    bias = resident[c]
                    if MASKED:
                        bias = hide(bias, hidden, b, near, KEY)
                    m, l, o = _online_softmax(q, k, v, bias, m, l, o, SCALE, SOFT_CAP, PRECISION, UPCAST)
            else:
                for step in range(steps):
                    near = halo_chunk(halo, step, BLOCKS, BLOCK, HALO_STEPS, RINGS, FIELDS, KEY[0], K, CHUNKS)
                    k, v = load_chunk(key, value, b, near, head // GROUP, KEY, VALUE, WIDE, FENCED)
                    bias = stream_table(
                        table, at_table, first_row, step, head, BLOCK_COUNT == 1, BIAS_HEADS, T, K, CHUNKS
                    )
                    if MASKED:
                        bias = hide(bias, hidden, b, near, KEY)
                    m, l, o = _online_softmax(q, k, v, bias, m, l, o, SCALE, SOFT_CAP, PRECISION, UPCAST)
            total = l
            if MASKED:  # 0 where a query sees no key, else at least 1, the weight of the largest logit
                total = tl.maximum(l, 1.0)
            store_tile(out + image(b, OUT) + at_out, o * (1 / total)[:, None], owned, OUT)
            at_row = (tl.cast(b, tl.int64) * QUERY[1] + head) * QUERY[0] + token
            tl.store(maxima + at_row, m, mask=owned)
            tl.store(logs + at_row, tl.log2(l), mask=owned)


@triton.jit
def _store_statistics(statistics, row, m, log, delta, owned, T: tl.constexpr):
    """Stores what the gradients of keys need of queries, four numbers each."""
    four = tl.reshape(tl.join(tl.join(m, delta), tl.join(log, log)), [T, 4])
    tl.store(statistics + row[:, None] * 4 + tl.arange(0, 4)[None, :], four, mask=owned[:, None])


@triton.jit
def _load_statistics(statistics, row, K: tl.constexpr):
    """Loads them, K each, in one go: of loads of fewer numbers than a program has threads, every thread makes all by itself."""
    four = tl.load(statistics + row[:, None] * 4 + tl.arange(0, 4)[None, :])
    firsts, seconds = tl.split(tl.reshape(four, [K, 2, 2]))
    m, delta = tl.split(firsts)
    log, _ = tl.split(seconds)
    return m, log, delta


@triton.jit
def _d_logits(
    q, k, v, do, bias, m, log, delta,
    SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The gradients of a chunk's logits, with their bias and before a cap."""
    s = _logits(q, k, SCALE, SOFT_CAP, PRECISION, UPCAST)
    p = tl.exp2((s + bias.to(tl.float32) - m[:, None]) - log[:, None])
    ds = p * (_dot(do, tl.trans(v), PRECISION, UPCAST) - delta[:, None])
    return ds, _before_cap(ds, s, SOFT_CAP)


@triton.jit
def bwd_dq(
    query, key, value, table, tiles, runs, rows, hidden, out, maxima, logs, d_out, d_lse, batch, share, steps,
    d_query, statistics, d_logits,
    SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    STEPS: tl.constexpr, HALO_STEPS: tl.constexpr, RINGS: tl.constexpr, FIELDS: tl.constexpr,
    QUERY: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, OUT: tl.constexpr,
    BIAS_HEADS: tl.constexpr, T: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, RESIDENT: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FENCED: tl.constexpr, D_QUERY: tl.constexpr, D_TABLE: tl.constexpr,
    D_LSE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Computes dquery and statistics where D_QUERY, and the summed gradient of the logits where D_TABLE.

    Both together need all chunks on chip (RESIDENT); D_TABLE alone gives every chunk programs of its own.
    """
    run, first_entry = tl.program_id(0), tl.program_id(2) * share
    head, chunk = tl.program_id(1) % QUERY[1], tl.program_id(1) // QUERY[1]
    first, last = tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)
    BLOCK_COUNT: tl.constexpr = BLOCKS[0] * BLOCKS[1] * BLOCKS[2]
    GROUP: tl.constexpr = QUERY[1] // KEY[1]
    D: tl.constexpr = QUERY[3]
    ON_CHIP: tl.constexpr = CHUNKS if RESIDENT else 1
    first_row = rows + tl.load(tiles + FIELDS * first + 2) * BLOCK_COUNT
    slot = tl.arange(0, T)
    row = tl.load(first_row + chunk // CHUNKS)
    at_table = in_table(table, row, head, BIAS_HEADS, T, K, CHUNKS) + chunk % CHUNKS * K
    resident, sums = (), ()
    for c in tl.static_range(ON_CHIP):
        if D_TABLE or RESIDENT:
            resident = resident + (tl.load(at_table + c * K),)
        if D_TABLE:
            sums = sums + (tl.zeros([T, K], tl.float32),)
    for t in range(first, last):
        tile = tiles + FIELDS * t
        owned = is_owned(slot, tile, TILE)
        token = tl.where(owned, tl.load(tile) + offsets(slot, TILE, STEPS), 0)
        at_query, at_out = elements(token, head, QUERY, WIDE), elements(token, head, OUT, WIDE)
        halo = halo_origin(tile, FIELDS)
        for b in range(first_entry, min(first_entry + share, batch)):
            in_query, in_out = image(b, QUERY), image(b, OUT)
            at_row = (tl.cast(b, tl.int64) * QUERY[1] + head) * QUERY[0] + token
            q = load_tile(query + in_query + at_query, owned, QUERY)
            do = load_tile(d_out + in_out + at_out, owned, OUT)
            m = tl.load(maxima + at_row, mask=owned, other=float("inf"))  # so that padding has weight 0
            log = tl.load(logs + at_row, mask=owned, other=0.0)
            if MASKED:  # minus infinity where a query sees no key: all its weights are 0
                log = tl.maximum(log, 0.0)
            o = load_tile(out + in_out + at_out, owned, OUT)
            delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
            if D_LSE:  # whose gradient by a logit is that logit's weight
                delta -= tl.load(d_lse + at_row, mask=owned, other=0.0)
            dq = tl.zeros([T, D], tl.float32)
            if D_TABLE or RESIDENT:
                new_sums = ()
                for c in tl.static_range(ON_CHIP):
                    near = halo_chunk(halo, chunk + c, BLOCKS, BLOCK, HALO_STEPS, RINGS, FIELDS, KEY[0], K, CHUNKS)
                    k, v = load_chunk(key, value, b, near, head // GROUP, KEY, VALUE, WIDE, FENCED)
                    bias = resident[c]
                    if MASKED:
                        bias = hide(bias, hidden, b, near, KEY)
                    ds, before = _d_logits(q, k, v, do, bias, m, log, delta, SCALE, SOFT_CAP, PRECISION, UPCAST)
                    if D_TABLE:
                        new_sums = new_sums + (sums[c] + ds,)
                    if D_QUERY:
                        dq += _dot(before.to(k.dtype), k, PRECISION, UPCAST)
                if D_TABLE:
                    sums = new_sums
            else:
                for step in range(steps):
                    near = halo_chunk(halo, step, BLOCKS, BLOCK, HALO_STEPS, RINGS, FIELDS, KEY[0], K, CHUNKS)
                    k, v = load_chunk(key, value, b, near, head // GROUP, KEY, VALUE, WIDE, FENCED)
                    bias = stream_table(
                        table, at_table, first_row, step, head, BLOCK_COUNT == 1, BIAS_HEADS, T, K, CHUNKS
                    )
                    if MASKED:
                        bias = hide(bias, hidden, b, near, KEY)
                    ds, before = _d_logits(q, k, v, do, bias, m, log, delta, SCALE, SOFT_CAP, PRECISION, UPCAST)
                    dq += _dot(before.to(k.dtype), k, PRECISION, UPCAST)
            if D_QUERY:
                store_tile(d_query + in_query + at_query, dq * SCALE, owned, QUERY)
                _store_statistics(statistics, at_row, m, log, delta, owned, T)
    if D_TABLE:
        program = (tl.program_id(2) * tl.num_programs(0) + run) * tl.num_programs(1) + tl.program_id(1)
        for c in tl.static_range(ON_CHIP):
            place = ((tl.cast(program, tl.int64) * ON_CHIP + c) * T + slot[:, None]) * K
            tl.store(d_logits + place + tl.arange(0, K)[None, :], sums[c])


@triton.jit
def _bwd_dkv_chunk(
    k, v, q, do, m, log, delta, bias, dk, dv,
    SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Takes one more chunk of queries into the gradients of keys and values; logits are [keys, queries]."""
    s = _logits(k, q, SCALE, SOFT_CAP, PRECISION, UPCAST)
    p = tl.exp2((s + bias.to(tl.float32) - m[None, :]) - log[None, :])
    dv += _dot(p.to(do.dtype), do, PRECISION, UPCAST)
    ds = p * (_dot(v, tl.trans(do), PRECISION, UPCAST) - delta[None, :])
    dk += _dot(_before_cap(ds, s, SOFT_CAP).to(q.dtype), q, PRECISION, UPCAST)
    return dk, dv


@triton.jit
def bwd_dkv(
    query, key, value, table, tiles, runs, rows, hidden, statistics, d_out, batch, share, steps, d_key, d_value,
    SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    STEPS: tl.constexpr, HALO_STEPS: tl.constexpr, RINGS: tl.constexpr, FIELDS: tl.constexpr,
    QUERY: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, OUT: tl.constexpr,
    BIAS_HEADS: tl.constexpr, T: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, RESIDENT: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FENCED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Computes dkey and dvalue; tiles are of keys, and halos of the queries that see them, of all heads that share the key head.

    Where these are several, chunks are not RESIDENT: every head may have a table of its own.
    """
    run, head, first_entry = tl.program_id(0), tl.program_id(1), tl.program_id(2) * share
    first, last = tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)
    BLOCK_COUNT: tl.constexpr = BLOCKS[0] * BLOCKS[1] * BLOCKS[2]
    GROUP: tl.constexpr = QUERY[1] // KEY[1]
    D: tl.constexpr = QUERY[3]
    DV: tl.constexpr = OUT[3]
    ONE_ROW: tl.constexpr = BLOCK_COUNT == 1 and GROUP == 1
    first_row = rows + tl.load(tiles + FIELDS * first + 2) * BLOCK_COUNT
    slot = tl.arange(0, T)
    at_table = in_table(table, tl.load(first_row), head, BIAS_HEADS, T, K, CHUNKS)
    resident = ()
    if RESIDENT:
        for c in tl.static_range(CHUNKS):
            resident = resident + (tl.load(at_table + c * K),)
    for t in range(first, last):
        tile = tiles + FIELDS * t
        owned = is_owned(slot, tile, TILE)
        token = tl.where(owned, tl.load(tile) + offsets(slot, TILE, STEPS), 0)
        at_key, at_value = elements(token, head, KEY, WIDE), elements(token, head, VALUE, WIDE)
        halo = halo_origin(tile, FIELDS)
        for b in range(first_entry, min(first_entry + share, batch)):
            in_key, in_value = image(b, KEY), image(b, VALUE)
            at_row = (tl.cast(b, tl.int64) * QUERY[1] + head) * QUERY[0]
            k = load_tile(key + in_key + at_key, owned, KEY)
            v = load_tile(value + in_value + at_value, owned, VALUE)
            dk = tl.zeros([T, D], tl.float32)
            dv = tl.zeros([T, DV], tl.float32)
            if RESIDENT:
                for c in tl.static_range(CHUNKS):
                    near = halo_chunk(halo, c, BLOCKS, BLOCK, HALO_STEPS, RINGS, FIELDS, QUERY[0], K, CHUNKS)
                    q, do = load_chunk(query, d_out, b, near, head, QUERY, OUT, WIDE, FENCED)
                    m, log, delta = _load_statistics(statistics, at_row + near, K)
                    dk, dv = _bwd_dkv_chunk(
                        k, v, q, do, m, log, delta, resident[c], dk, dv, SCALE, SOFT_CAP, PRECISION, UPCAST
                    )
            else:
                for one in range(steps):
                    query_head, step = head, one
                    if GROUP > 1:  # all chunks of its first query head, then of the next
                        query_head, step = head * GROUP + one // (BLOCK_COUNT * CHUNKS), one % (BLOCK_COUNT * CHUNKS)
                        at_row = (tl.cast(b, tl.int64) * QUERY[1] + query_head) * QUERY[0]
                    near = halo_chunk(halo, step, BLOCKS, BLOCK, HALO_STEPS, RINGS, FIELDS, QUERY[0], K, CHUNKS)
                    q, do = load_chunk(query, d_out, b, near, query_head, QUERY, OUT, WIDE, FENCED)
                    m, log, delta = _load_statistics(statistics, at_row + near, K)
                    bias = stream_table(table, at_table, first_row, step, query_head, ONE_ROW, BIAS_HEADS, T, K, CHUNKS)
                    dk, dv = _bwd_dkv_chunk(
                        k, v, q, do, m, log, delta, bias, dk, dv, SCALE, SOFT_CAP, PRECISION, UPCAST
                    )
            if MASKED:
                seen = tl.load(hidden + tl.cast(b, tl.int64) * KEY[0] + token, mask=owned, other=0.0) == 0.0
                dk, dv = tl.where(seen[:, None], dk, 0.0), tl.where(seen[:, None], dv, 0.0)
            store_tile(d_key + in_key + at_key, dk * SCALE, owned, KEY)
            store_tile(d_value + in_value + at_value, dv, owned, VALUE)
