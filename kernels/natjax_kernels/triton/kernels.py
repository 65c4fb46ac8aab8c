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

Shapes: tokens [B, L, N, D]; maxima m, logs (of the sums of weights, l) and, with D_LSE, the gradient of the log-sum-exp d_lse
[B, N, L] float32; statistics [B, N, L, 4] float32: m, log l, delta (the sum of out * d_out, less d_lse) and padding; table
[rows, N or 1, T, S], a bias in float32; dS [shares of the batch, runs, chunks or 1, N, 1 or chunks, T, K] float32. Triples are
(z, y, x).
Letters: B batch, L tokens, N heads, D channels, T slots of a tile, S slots of a block in CHUNKS of K, all powers of two but S.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-3e38)  # the maximum over nothing but minus infinities must be finite


@triton.jit
def _offsets(slot, SIDES: tl.constexpr, STEPS: tl.constexpr):
    """Tokens from an origin to slots of a box with such sides."""
    z = slot // (SIDES[1] * SIDES[2])
    y = slot // SIDES[2] % SIDES[1]
    x = slot % SIDES[2]
    return z * STEPS[0] + y * STEPS[1] + x * STEPS[2]


@triton.jit
def _owned(slot, tile, SIDES: tl.constexpr):
    """Which slots hold a token: tiles at the end of an axis have fewer, and T is padded."""
    z = slot // (SIDES[1] * SIDES[2])
    y = slot // SIDES[2] % SIDES[1]
    x = slot % SIDES[2]
    return (z < tl.load(tile + 3)) & (y < tl.load(tile + 4)) & (x < tl.load(tile + 5))


@triton.jit
def _block_origin(block, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """Tokens from a halo's origin to that of a block."""
    z = block // (BLOCKS[1] * BLOCKS[2])
    y = block // BLOCKS[2] % BLOCKS[1]
    x = block % BLOCKS[2]
    return z * (BLOCK[0] * STEPS[0]) + y * (BLOCK[1] * STEPS[1]) + x * (BLOCK[2] * STEPS[2])


@triton.jit
def _elements(token, head, HEADS: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr, WIDE: tl.constexpr):
    """Places of tokens' channels within an image, [tokens, PADDED_D]; in 64 bits only where an image needs them."""
    if WIDE:
        token = token.to(tl.int64)
    return token[:, None] * (HEADS * D) + head * D + tl.arange(0, PADDED_D)[None, :]


@triton.jit
def _load(pointers, owned, D: tl.constexpr, PADDED_D: tl.constexpr):
    """Loads tokens; those not owned and channels beyond D are 0."""
    if PADDED_D == D:
        return tl.load(pointers, mask=owned[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=owned[:, None] & (tl.arange(0, PADDED_D) < D)[None, :], other=0.0)


@triton.jit
def _load_halo(pointers, D: tl.constexpr, PADDED_D: tl.constexpr):
    """Loads tokens of a halo, all of which exist (the table masks those that are no neighbours)."""
    if PADDED_D == D:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(tl.arange(0, PADDED_D) < D)[None, :], other=0.0)


@triton.jit
def _store(pointers, x, owned, D: tl.constexpr, PADDED_D: tl.constexpr):
    """Stores owned tokens."""
    if PADDED_D == D:
        tl.store(pointers, x.to(pointers.dtype.element_ty), mask=owned[:, None])
    else:
        mask = owned[:, None] & (tl.arange(0, PADDED_D) < D)[None, :]
        tl.store(pointers, x.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _in_table(table, row, head, BIAS_HEADS: tl.constexpr, T: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr):
    """Where the table has the bias of a block's first chunk, [T, K]; the next chunk is K further."""
    if BIAS_HEADS == 1:
        head = 0
    place = ((row * BIAS_HEADS + head) * T + tl.arange(0, T)[:, None]) * (CHUNKS * K)
    return table + place + tl.arange(0, K)[None, :]


@triton.jit
def _stream_table(
    table, at_table, first_row, step, head, BLOCK_COUNT: tl.constexpr, BIAS_HEADS: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Loads the bias of a chunk of a halo, [T, K]: of its one block, or of the row that the chunk's block has."""
    if BLOCK_COUNT == 1:
        return tl.load(at_table + step * K)
    else:
        row = tl.load(first_row + step // CHUNKS)
        return tl.load(_in_table(table, row, head, BIAS_HEADS, T, K, CHUNKS) + step % CHUNKS * K)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Matrix product into float32."""
    if UPCAST:  # Triton's interpreter cannot multiply bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _fence():
    """Lets products that read shared memory by themselves (wgmma) see what was copied there; see `launch.fenced`."""
    asm: tl.constexpr = "fence.proxy.async.shared::cta;\nmov.b32 $0, 0;"
    tl.inline_asm_elementwise(asm, "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _halo_chunk(halo, step, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, TOKENS: tl.constexpr,
                K: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """Tokens of a chunk of a halo, [K]; past a block's end its last, which the table masks and the cache has at hand."""
    origin = halo + _block_origin(step // CHUNKS, BLOCKS, BLOCK, STEPS)
    slot = step % CHUNKS * K + tl.arange(0, K)
    SLOTS: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2]
    if SLOTS % K != 0:
        slot = tl.minimum(slot, SLOTS - 1)
    return tl.minimum(origin + _offsets(slot, BLOCK, STEPS), TOKENS - 1)


@triton.jit
def _online_softmax(q, k, v, bias, m, l, o, SCALE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Takes one more chunk of keys into the maximum m, the sum of weights l and the unnormalised output o."""
    s = _dot(q, tl.trans(k), PRECISION, UPCAST) * (SCALE * _LOG2E) + bias.to(tl.float32)
    m_new = tl.maximum(m, tl.max(s, 1))
    p = tl.exp2(s - m_new[:, None])
    alpha = tl.exp2(m - m_new)
    o = o * alpha[:, None] + _dot(p.to(v.dtype), v, PRECISION, UPCAST)
    return m_new, l * alpha + tl.sum(p, 1), o


@triton.jit
def fwd(
    query, key, value, table, tiles, runs, rows, batch, share, steps, out, maxima, logs,
    SCALE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, STEPS: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, BIAS_HEADS: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr,
    T: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, RESIDENT: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FENCED: tl.constexpr,
):  # fmt: skip
    """Computes the output and, for the backward pass, the maximum and the sum of every query's weights."""
    run, head, first_entry = tl.program_id(0), tl.program_id(1), tl.program_id(2) * share
    first, last = tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)
    BLOCK_COUNT: tl.constexpr = BLOCKS[0] * BLOCKS[1] * BLOCKS[2]
    first_row = rows + tl.load(tiles + 6 * first + 2) * BLOCK_COUNT
    slot = tl.arange(0, T)
    at_table = _in_table(table, tl.load(first_row), head, BIAS_HEADS, T, K, CHUNKS)
    resident = ()
    if RESIDENT:
        for c in tl.static_range(CHUNKS):
            resident = resident + (tl.load(at_table + c * K),)
    for t in range(first, last):
        tile = tiles + 6 * t
        owned = _owned(slot, tile, TILE)
        token = tl.where(owned, tl.load(tile) + _offsets(slot, TILE, STEPS), 0)
        at_query = _elements(token, head, HEADS, D, PADDED_D, WIDE)
        halo = tl.load(tile + 1)
        for b in range(first_entry, min(first_entry + share, batch)):
            image = tl.cast(b, tl.int64) * (TOKENS * HEADS * D)
            q = _load(query + image + at_query, owned, D, PADDED_D)
            m = tl.full([T], _LOWEST, tl.float32)
            l = tl.zeros([T], tl.float32)
            o = tl.zeros([T, PADDED_D], tl.float32)
            if RESIDENT:
                for c in tl.static_range(CHUNKS):
                    near = _halo_chunk(halo, c, BLOCKS, BLOCK, STEPS, TOKENS, K, CHUNKS)
                    at_key = _elements(near, head, HEADS, D, PADDED_D, WIDE)
                    k = _load_halo(key + image + at_key, D, PADDED_D)
                    v = _load_halo(value + image + at_key, D, PADDED_D)
                    if FENCED:
                        _fence()
                    m, l, o = _online_softmax(q, k, v, resident[c], m, l, o, SCALE, PRECISION, UPCAST)
            else:
                for step in range(steps):
                    near = _halo_chunk(halo, step, BLOCKS, BLOCK, STEPS, TOKENS, K, CHUNKS)
                    at_key = _elements(near, head, HEADS, D, PADDED_D, WIDE)
                    k = _load_halo(key + image + at_key, D, PADDED_D)
                    v = _load_halo(value + image + at_key, D, PADDED_D)
                    if FENCED:
                        _fence()
                    bias = _stream_table(table, at_table, first_row, step, head, BLOCK_COUNT, BIAS_HEADS, T, K, CHUNKS)
                    m, l, o = _online_softmax(q, k, v, bias, m, l, o, SCALE, PRECISION, UPCAST)
            _store(out + image + at_query, o * (1 / l)[:, None], owned, D, PADDED_D)
            at_row = (tl.cast(b, tl.int64) * HEADS + head) * TOKENS + token
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
def _d_logits(q, k, v, do, bias, m, log, delta, SCALE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """The gradient of a chunk's logits."""
    s = _dot(q, tl.trans(k), PRECISION, UPCAST) * (SCALE * _LOG2E) + bias.to(tl.float32)
    p = tl.exp2((s - m[:, None]) - log[:, None])
    return p * (_dot(do, tl.trans(v), PRECISION, UPCAST) - delta[:, None])


@triton.jit
def bwd_dq(
    query, key, value, table, tiles, runs, rows, out, maxima, logs, d_out, d_lse, batch, share, steps,
    d_query, statistics, d_logits,
    SCALE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, STEPS: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, BIAS_HEADS: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr,
    T: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, RESIDENT: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FENCED: tl.constexpr, D_QUERY: tl.constexpr, D_TABLE: tl.constexpr,
    D_LSE: tl.constexpr,
):  # fmt: skip
    """Computes dquery and statistics where D_QUERY, and the summed gradient of the logits where D_TABLE.

    Both together need all chunks on chip (RESIDENT); D_TABLE alone gives every chunk programs of its own.
    """
    run, first_entry = tl.program_id(0), tl.program_id(2) * share
    head, chunk = tl.program_id(1) % HEADS, tl.program_id(1) // HEADS
    first, last = tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)
    BLOCK_COUNT: tl.constexpr = BLOCKS[0] * BLOCKS[1] * BLOCKS[2]
    ON_CHIP: tl.constexpr = CHUNKS if RESIDENT else 1
    first_row = rows + tl.load(tiles + 6 * first + 2) * BLOCK_COUNT
    slot = tl.arange(0, T)
    row = tl.load(first_row + chunk // CHUNKS)
    at_table = _in_table(table, row, head, BIAS_HEADS, T, K, CHUNKS) + chunk % CHUNKS * K
    resident, sums = (), ()
    for c in tl.static_range(ON_CHIP):
        if D_TABLE or RESIDENT:
            resident = resident + (tl.load(at_table + c * K),)
        if D_TABLE:
            sums = sums + (tl.zeros([T, K], tl.float32),)
    for t in range(first, last):
        tile = tiles + 6 * t
        owned = _owned(slot, tile, TILE)
        token = tl.where(owned, tl.load(tile) + _offsets(slot, TILE, STEPS), 0)
        at_query = _elements(token, head, HEADS, D, PADDED_D, WIDE)
        halo = tl.load(tile + 1)
        for b in range(first_entry, min(first_entry + share, batch)):
            image = tl.cast(b, tl.int64) * (TOKENS * HEADS * D)
            at_row = (tl.cast(b, tl.int64) * HEADS + head) * TOKENS + token
            q = _load(query + image + at_query, owned, D, PADDED_D)
            do = _load(d_out + image + at_query, owned, D, PADDED_D)
            m = tl.load(maxima + at_row, mask=owned, other=float("inf"))  # so that padding has weight 0
            log = tl.load(logs + at_row, mask=owned, other=0.0)
            o = _load(out + image + at_query, owned, D, PADDED_D)
            delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
            if D_LSE:  # whose gradient by a logit is that logit's weight
                delta -= tl.load(d_lse + at_row, mask=owned, other=0.0)
            dq = tl.zeros([T, PADDED_D], tl.float32)
            if D_TABLE or RESIDENT:
                new_sums = ()
                for c in tl.static_range(ON_CHIP):
                    near = _halo_chunk(halo, chunk + c, BLOCKS, BLOCK, STEPS, TOKENS, K, CHUNKS)
                    at_key = _elements(near, head, HEADS, D, PADDED_D, WIDE)
                    k = _load_halo(key + image + at_key, D, PADDED_D)
                    v = _load_halo(value + image + at_key, D, PADDED_D)
                    if FENCED:
                        _fence()
                    ds = _d_logits(q, k, v, do, resident[c], m, log, delta, SCALE, PRECISION, UPCAST)
                    if D_TABLE:
                        new_sums = new_sums + (sums[c] + ds,)
                    if D_QUERY:
                        dq += _dot(ds.to(k.dtype), k, PRECISION, UPCAST)
                if D_TABLE:
                    sums = new_sums
            else:
                for step in range(steps):
                    near = _halo_chunk(halo, step, BLOCKS, BLOCK, STEPS, TOKENS, K, CHUNKS)
                    at_key = _elements(near, head, HEADS, D, PADDED_D, WIDE)
                    k = _load_halo(key + image + at_key, D, PADDED_D)
                    v = _load_halo(value + image + at_key, D, PADDED_D)
                    if FENCED:
                        _fence()
                    bias = _stream_table(table, at_table, first_row, step, head, BLOCK_COUNT, BIAS_HEADS, T, K, CHUNKS)
                    ds = _d_logits(q, k, v, do, bias, m, log, delta, SCALE, PRECISION, UPCAST)
                    dq += _dot(ds.to(k.dtype), k, PRECISION, UPCAST)
            if D_QUERY:
                _store(d_query + image + at_query, dq * SCALE, owned, D, PADDED_D)
                _store_statistics(statistics, at_row, m, log, delta, owned, T)
    if D_TABLE:
        program = (tl.program_id(2) * tl.num_programs(0) + run) * tl.num_programs(1) + tl.program_id(1)
        for c in tl.static_range(ON_CHIP):
            place = ((tl.cast(program, tl.int64) * ON_CHIP + c) * T + slot[:, None]) * K
            tl.store(d_logits + place + tl.arange(0, K)[None, :], sums[c])


@triton.jit
def _bwd_dkv_chunk(
    k, v, q, do, m, log, delta, bias, dk, dv, SCALE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr
):
    """Takes one more chunk of queries into the gradients of keys and values; logits are [keys, queries]."""
    s = _dot(k, tl.trans(q), PRECISION, UPCAST) * (SCALE * _LOG2E) + bias.to(tl.float32)
    p = tl.exp2((s - m[None, :]) - log[None, :])
    dv += _dot(p.to(do.dtype), do, PRECISION, UPCAST)
    ds = p * (_dot(v, tl.trans(do), PRECISION, UPCAST) - delta[None, :])
    dk += _dot(ds.to(q.dtype), q, PRECISION, UPCAST)
    return dk, dv


@triton.jit
def bwd_dkv(
    query, key, value, table, tiles, runs, rows, statistics, d_out, batch, share, steps, d_key, d_value,
    SCALE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, STEPS: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, BIAS_HEADS: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr,
    T: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, RESIDENT: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, FENCED: tl.constexpr,
):  # fmt: skip
    """Computes dkey and dvalue; tiles are of keys, and halos of the queries that see them."""
    run, head, first_entry = tl.program_id(0), tl.program_id(1), tl.program_id(2) * share
    first, last = tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)
    BLOCK_COUNT: tl.constexpr = BLOCKS[0] * BLOCKS[1] * BLOCKS[2]
    first_row = rows + tl.load(tiles + 6 * first + 2) * BLOCK_COUNT
    slot = tl.arange(0, T)
    at_table = _in_table(table, tl.load(first_row), head, BIAS_HEADS, T, K, CHUNKS)
    resident = ()
    if RESIDENT:
        for c in tl.static_range(CHUNKS):
            resident = resident + (tl.load(at_table + c * K),)
    for t in range(first, last):
        tile = tiles + 6 * t
        owned = _owned(slot, tile, TILE)
        token = tl.where(owned, tl.load(tile) + _offsets(slot, TILE, STEPS), 0)
        at_key = _elements(token, head, HEADS, D, PADDED_D, WIDE)
        halo = tl.load(tile + 1)
        for b in range(first_entry, min(first_entry + share, batch)):
            image = tl.cast(b, tl.int64) * (TOKENS * HEADS * D)
            at_row = (tl.cast(b, tl.int64) * HEADS + head) * TOKENS
            k = _load(key + image + at_key, owned, D, PADDED_D)
            v = _load(value + image + at_key, owned, D, PADDED_D)
            dk = tl.zeros([T, PADDED_D], tl.float32)
            dv = tl.zeros([T, PADDED_D], tl.float32)
            if RESIDENT:
                for c in tl.static_range(CHUNKS):
                    near = _halo_chunk(halo, c, BLOCKS, BLOCK, STEPS, TOKENS, K, CHUNKS)
                    at_query = _elements(near, head, HEADS, D, PADDED_D, WIDE)
                    q = _load_halo(query + image + at_query, D, PADDED_D)
                    do = _load_halo(d_out + image + at_query, D, PADDED_D)
                    if FENCED:
                        _fence()
                    m, log, delta = _load_statistics(statistics, at_row + near, K)
                    dk, dv = _bwd_dkv_chunk(k, v, q, do, m, log, delta, resident[c], dk, dv, SCALE, PRECISION, UPCAST)
            else:
                for step in range(steps):
                    near = _halo_chunk(halo, step, BLOCKS, BLOCK, STEPS, TOKENS, K, CHUNKS)
                    at_query = _elements(near, head, HEADS, D, PADDED_D, WIDE)
                    q = _load_halo(query + image + at_query, D, PADDED_D)
                    do = _load_halo(d_out + image + at_query, D, PADDED_D)
                    if FENCED:
                        _fence()
                    m, log, delta = _load_statistics(statistics, at_row + near, K)
                    bias = _stream_table(table, at_table, first_row, step, head, BLOCK_COUNT, BIAS_HEADS, T, K, CHUNKS)
                    dk, dv = _bwd_dkv_chunk(k, v, q, do, m, log, delta, bias, dk, dv, SCALE, PRECISION, UPCAST)
            _store(d_key + image + at_key, dk * SCALE, owned, D, PADDED_D)
            _store(d_value + image + at_key, dv, owned, D, PADDED_D)
