"""The forward kernel of the band design, in Gluon: Triton's layer in which a kernel says itself which thread holds what.

`natjax_kernels.fused.band` says what a tile, a box, a position and a band are, and how borders are data. A program takes one
tile, one head and a share of the batch. The boxes of an entry's keys and values are copied to shared memory once, with STAGES 2
while the entry before is worked on. Each of the four warps multiplies its 16 queries by its own band, position by position:
position p of the band of warp w is position w + p of the box, so that the operand of all four warps is one slice of shared
memory, [4, 32, D], whose first axis is the warp. Slices of neighbouring p overlap. All scores are on chip: softmax is one
pass. The table stays in registers, where the first products accumulate on it, in units of logits before they are scaled.
Barriers are Triton's, which puts them between uses of a buffer; keys and values are copied in turns as they are two buffers.

Shapes: tokens [B, L, N, D]; table [classes, N or 1, 64, 32 P] float32; maxima and logs (of the sums of weights) [B, N, L]
float32, in base 2, as `natjax_kernels.triton.kernels.fwd` writes them; tiles and box_rows int32, as in `Band`.
Letters: B batch, L tokens, N heads, D channels, P positions of a band.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

_LOG2E = gl.constexpr(1.4426950408889634)
_LOWEST = gl.constexpr(-3e38)  # the maximum over nothing but minus infinities must be finite


@gluon.jit
def _along(AXIS: gl.constexpr, N: gl.constexpr, LAYOUT: gl.constexpr):
    """0 to N - 1 along one of three axes."""
    if AXIS == 0:
        return gl.arange(0, N, layout=gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))[:, None, None]
    elif AXIS == 1:
        return gl.arange(0, N, layout=gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))[None, :, None]
    else:
        return gl.arange(0, N, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))[None, None, :]


@gluon.jit
def _elements(row, column, WIDTH: gl.constexpr, HEADS: gl.constexpr, D: gl.constexpr, WIDE: gl.constexpr,
              LAYOUT: gl.constexpr):  # fmt: skip
    """Places of tokens' channels, from a token's first one, [., ., D]; in 64 bits only where an image needs them."""
    if WIDE:
        row = gl.cast(row, gl.int64)
    return row * (WIDTH * HEADS * D) + column * (HEADS * D) + _along(2, D, LAYOUT)


@gluon.jit
def _copy_entry(key, value, query, at_box, seen, at_tile, keys, values, queries, stage, PARTS: gl.constexpr,
                BOX: gl.constexpr):  # fmt: skip
    """Starts copying to shared memory what one entry of the batch needs."""
    for part in gl.static_range(len(PARTS)):
        position = stage * BOX + PARTS[part][0]
        here = keys.index(position)._reinterpret(keys.dtype, at_box[part].shape, keys.layout)
        async_copy.async_copy_global_to_shared(here, key + at_box[part], mask=seen)
        here = values.index(position)._reinterpret(values.dtype, at_box[part].shape, values.layout)
        async_copy.async_copy_global_to_shared(here, value + at_box[part], mask=seen)
    async_copy.async_copy_global_to_shared(queries.index(stage), query + at_tile)
    async_copy.commit_group()


@gluon.jit
def band(
    query, key, value, table, tiles, box_rows, batch, share, out, maxima, logs,
    SCALE: gl.constexpr, WIDTH: gl.constexpr, TOKENS: gl.constexpr, HEADS: gl.constexpr, BIAS_HEADS: gl.constexpr,
    D: gl.constexpr, P: gl.constexpr, PARTS: gl.constexpr, STAGES: gl.constexpr, WIDE: gl.constexpr,
):  # fmt: skip
    """Computes the output and, for the backward pass, the maximum and the sum of every query's weights.

    PARTS cuts the positions of a box into (first, number), each number a power of two.
    """
    BOX: gl.constexpr = P + 3
    SCALE2: gl.constexpr = SCALE * _LOG2E
    # A warp's products: 16 queries by 32 slots.
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[4, 1, 1], instr_shape=[1, 16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, MMA, 2)
    # Copies: 16 bytes of a token to a thread, the next ones to its neighbour; the tokens of a position to all warps.
    TOKEN: gl.constexpr = D // 8
    OF_BOX: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 32 // TOKEN, TOKEN], [1, 4, 1], [2, 1, 0])
    OF_TILE: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 32 // TOKEN, TOKEN], [4, 1, 1], [2, 1, 0])
    # The same 16 bytes of eight tokens are in different banks. A token's place depends on its slot within its position alone, so
    # that slices may begin at any position.
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(8, 64 // D, D // 8, [2, 1, 0])
    DTYPE: gl.constexpr = query.dtype.element_ty
    keys = gl.allocate_shared_memory(DTYPE, [STAGES * BOX, 1, 32, D], SHARED)
    values = gl.allocate_shared_memory(DTYPE, [STAGES * BOX, 1, 32, D], SHARED)
    queries = gl.allocate_shared_memory(DTYPE, [STAGES, 4, 16, D], SHARED)

    tile, head, first = tiles + 6 * gl.program_id(0), gl.program_id(1), gl.program_id(2) * share
    last = gl.minimum(first + share, batch)
    first_query, first_column, row_class = gl.load(tile), gl.load(tile + 1), gl.load(tile + 2)
    rows = box_rows + gl.load(tile + 3) * (2 * BOX)

    at_box = ()
    for part in gl.static_range(len(PARTS)):
        slot = _along(1, 32, OF_BOX)
        row = gl.load(rows + 2 * (PARTS[part][0] + _along(0, PARTS[part][1], OF_BOX)) + slot // 16)
        at_box = at_box + (_elements(row, slot % 16, WIDTH, HEADS, D, WIDE, OF_BOX),)
    column = _along(1, 32, OF_BOX) % 16
    seen = (column >= gl.load(tile + 4)) & (column < gl.load(tile + 5))
    slot = _along(1, 16, OF_TILE)
    at_tile = _elements(2 * _along(0, 4, OF_TILE) + slot // 8, slot % 8, WIDTH, HEADS, D, WIDE, OF_TILE)

    table_head = head
    if BIAS_HEADS == 1:
        table_head = 0
    at_table = ((row_class * BIAS_HEADS + table_head) * 64 + 16 * _along(0, 4, MMA) + _along(1, 16, MMA)) * (32 * P)
    bias = ()
    for p in gl.static_range(P):
        bias = bias + (gl.load(table + at_table + 32 * p + _along(2, 32, MMA)),)

    IMAGE: gl.constexpr = TOKENS * HEADS * D
    image = gl.cast(first, gl.int64) * IMAGE + head * D
    at_query = image + gl.cast(first_query, gl.int64) * (HEADS * D)
    at_key = image + first_column * (HEADS * D)
    query, key, value, out = query + at_query, key + at_key, value + at_key, out + at_query
    of_query = (gl.cast(first, gl.int64) * HEADS + head) * TOKENS + first_query
    maxima, logs = maxima + of_query, logs + of_query
    QUERIES: gl.constexpr = gl.SliceLayout(2, MMA)
    slot = gl.arange(0, 16, layout=gl.SliceLayout(0, QUERIES))[None, :]
    row = 2 * gl.arange(0, 4, layout=gl.SliceLayout(1, QUERIES))[:, None] + slot // 8
    at_row = row * WIDTH + slot % 8

    _copy_entry(key, value, query, at_box, seen, at_tile, keys, values, queries, 0, PARTS, BOX)
    stage = 0
    for b in range(first, last):
        key, value, query = key + IMAGE, value + IMAGE, query + IMAGE
        following = (stage + 1) % STAGES
        if STAGES == 1:
            async_copy.wait_group(0)
        else:
            if b + 1 < last:
                _copy_entry(key, value, query, at_box, seen, at_tile, keys, values, queries, following, PARTS, BOX)
            else:
                async_copy.commit_group()  # of nothing, so that the one waited for is the one before the last in any case
            async_copy.wait_group(1)

        q = queries.index(stage).load(LEFT)
        scores = ()
        for p in gl.static_range(P):
            k = keys.index(stage * BOX + p)._reinterpret(DTYPE, [4, 32, D], SHARED)
            scores = scores + (mma_v2(q, k.permute([0, 2, 1]).load(RIGHT), bias[p]),)
        highest = scores[0]
        for p in gl.static_range(1, P):
            highest = gl.maximum(highest, scores[p])
        m = gl.maximum(gl.max(highest, 2) * SCALE2, _LOWEST)
        sums = gl.zeros([4, 16, 32], gl.float32, MMA)
        o = gl.zeros([4, 16, D], gl.float32, MMA)
        for p in gl.static_range(P):
            weights = gl.exp2(scores[p] * SCALE2 - m[:, :, None])
            sums = sums + weights
            v = values.index(stage * BOX + p)._reinterpret(DTYPE, [4, 32, D], SHARED)
            o = mma_v2(gl.convert_layout(gl.cast(weights, DTYPE), LEFT), v.load(RIGHT), o)
        l = gl.sum(sums, 2)
        o = o * (1.0 / l)[:, :, None]
        gl.store(out + at_tile, gl.convert_layout(gl.cast(o, DTYPE), OF_TILE))
        gl.store(maxima + at_row, m)
        gl.store(logs + at_row, gl.log2(l))
        out, maxima, logs = out + IMAGE, maxima + HEADS * TOKENS, logs + HEADS * TOKENS

        if STAGES == 1:  # noqa: SIM102  # decided when it is compiled
            if b + 1 < last:
                _copy_entry(key, value, query, at_box, seen, at_tile, keys, values, queries, 0, PARTS, BOX)
        stage = following
