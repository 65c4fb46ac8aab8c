"""Where the kernels find what they work on: tokens of tiles and of their halos, and the table of bias-or-minus-infinity.

Arrays of tokens are [B, L, N, D]; `OF` says of one what is static: (L, N, D, D padded to a power of two). Triples are (z, y, x).
Letters: T slots of a tile, S slots of a block of its halo in CHUNKS of K.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def offsets(slot, SIDES: tl.constexpr, STEPS: tl.constexpr):
    """Tokens from an origin to slots of a box with such sides."""
    z = slot // (SIDES[1] * SIDES[2])
    y = slot // SIDES[2] % SIDES[1]
    x = slot % SIDES[2]
    return z * STEPS[0] + y * STEPS[1] + x * STEPS[2]


@triton.jit
def is_owned(slot, tile, SIDES: tl.constexpr):
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
def halo_origin(tile, FIELDS: tl.constexpr):
    """The first token of a tile's halo; where an axis is a ring, its position along every axis."""
    if FIELDS == 6:
        return tl.load(tile + 1)
    else:
        return tl.load(tile + 6), tl.load(tile + 7), tl.load(tile + 8)


@triton.jit
def halo_chunk(halo, step, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, RINGS: tl.constexpr,
               FIELDS: tl.constexpr, TOKENS: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """Tokens of a chunk of a halo, [K]; past a block's end its last, which the table masks and the cache has at hand."""
    if FIELDS == 6:
        origin = halo + _block_origin(step // CHUNKS, BLOCKS, BLOCK, STEPS)
    slot = step % CHUNKS * K + tl.arange(0, K)
    SLOTS: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2]
    if SLOTS % K != 0:
        slot = tl.minimum(slot, SLOTS - 1)
    if FIELDS == 6:
        token = origin + offsets(slot, BLOCK, STEPS)
    else:
        block = step // CHUNKS
        z = block // (BLOCKS[1] * BLOCKS[2]) * BLOCK[0] + slot // (BLOCK[1] * BLOCK[2])
        y = block // BLOCKS[2] % BLOCKS[1] * BLOCK[1] + slot // BLOCK[2] % BLOCK[1]
        x = block % BLOCKS[2] * BLOCK[2] + slot % BLOCK[2]
        token = _on_ring(halo[0], z, RINGS[0], RINGS[1], RINGS[2])
        token += _on_ring(halo[1], y, RINGS[3], RINGS[4], RINGS[5])
        token += _on_ring(halo[2], x, RINGS[6], RINGS[7], RINGS[8])
    return tl.minimum(token, TOKENS - 1)


@triton.jit
def _on_ring(origin, slot, LENGTH: tl.constexpr, APART: tl.constexpr, STRIDE: tl.constexpr):
    """Tokens to a slot of a halo along one axis, a ring where it has a LENGTH."""
    position = origin + slot * APART
    if LENGTH > 0:
        position = position % LENGTH
    return position * STRIDE


@triton.jit
def image(entry, OF: tl.constexpr):
    """Elements before the image of a batch entry."""
    return tl.cast(entry, tl.int64) * (OF[0] * OF[1] * OF[2])


@triton.jit
def elements(token, head, OF: tl.constexpr, WIDE: tl.constexpr):
    """Places of tokens' channels within an image, [tokens, padded D]; in 64 bits only where an image needs them."""
    if WIDE:
        token = token.to(tl.int64)
    return token[:, None] * (OF[1] * OF[2]) + head * OF[2] + tl.arange(0, OF[3])[None, :]


@triton.jit
def load_tile(pointers, owned, OF: tl.constexpr):
    """Loads tokens; those not owned and channels beyond D are 0."""
    if OF[3] == OF[2]:
        return tl.load(pointers, mask=owned[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=owned[:, None] & (tl.arange(0, OF[3]) < OF[2])[None, :], other=0.0)


@triton.jit
def store_tile(pointers, x, owned, OF: tl.constexpr):
    """Stores owned tokens."""
    if OF[3] == OF[2]:
        tl.store(pointers, x.to(pointers.dtype.element_ty), mask=owned[:, None])
    else:
        mask = owned[:, None] & (tl.arange(0, OF[3]) < OF[2])[None, :]
        tl.store(pointers, x.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _load_near(pointers, OF: tl.constexpr):
    """Loads tokens of a halo, all of which exist (the table masks those that are no neighbours)."""
    if OF[3] == OF[2]:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(tl.arange(0, OF[3]) < OF[2])[None, :], other=0.0)


@triton.jit
def _fence():
    """Lets products that read shared memory by themselves (wgmma) see what was copied there; see `launch.fenced`."""
    asm: tl.constexpr = "fence.proxy.async.shared::cta;\nmov.b32 $0, 0;"
    tl.inline_asm_elementwise(asm, "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def load_chunk(first, second, entry, near, head, FIRST: tl.constexpr, SECOND: tl.constexpr, WIDE: tl.constexpr,
               FENCED: tl.constexpr):  # fmt: skip
    """Loads tokens of a halo of two arrays: keys and values, or queries and gradients of their output."""
    at_first, at_second = elements(near, head, FIRST, WIDE), elements(near, head, SECOND, WIDE)
    a = _load_near(first + image(entry, FIRST) + at_first, FIRST)
    b = _load_near(second + image(entry, SECOND) + at_second, SECOND)
    if FENCED:
        _fence()
    return a, b


@triton.jit
def in_table(table, row, head, BIAS_HEADS: tl.constexpr, T: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr):
    """Where the table has the bias of a block's first chunk, [T, K]; the next chunk is K further."""
    if BIAS_HEADS == 1:
        head = 0
    place = ((row * BIAS_HEADS + head) * T + tl.arange(0, T)[:, None]) * (CHUNKS * K)
    return table + place + tl.arange(0, K)[None, :]


@triton.jit
def stream_table(
    table, at_table, first_row, step, head, ONE_ROW: tl.constexpr, BIAS_HEADS: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Loads the bias of a chunk of a halo, [T, K]: of its one block, or of the row that the chunk's block has."""
    if ONE_ROW:
        return tl.load(at_table + step * K)
    else:
        row = tl.load(first_row + step // CHUNKS)
        return tl.load(in_table(table, row, head, BIAS_HEADS, T, K, CHUNKS) + step % CHUNKS * K)


@triton.jit
def hide(bias, hidden, entry, near, OF: tl.constexpr):
    """Adds to the bias of a chunk, [T, K], minus infinity for keys that no query may see."""
    return bias.to(tl.float32) + tl.load(hidden + tl.cast(entry, tl.int64) * OF[0] + near)[None, :]
