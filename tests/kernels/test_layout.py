"""Layouts and schedules of the fused kernels: every pair once, sizes without a layout, waves of programs that are full."""

import dataclasses
import heapq
import math

import jax.numpy as jnp
import numpy as np
import pytest

from natjax_kernels import neighborhood_attention
from natjax_kernels.bias import MASKED, bias_table
from natjax_kernels.fused.configurations import KERNELS, Case, Config, halo
from natjax_kernels.fused.layout import Sizes, furthest, layout, sizes
from natjax_kernels.fused.schedule import Schedule
from natjax_kernels.split import split_axis
from natjax_kernels.window import Window

pytestmark = pytest.mark.once  # all of it is static


LAYOUTS = {  # sides of the map of keys, kernel size, dilation, stride, causal, tile, block; periodic and keys per query
    "1-D": ((19,), (5,), (2,), (1,), (False,), (4,), None),
    "strided groups": ((15,), (2,), (2,), (2,), (False,), (6,), None),
    "1-D in blocks": ((40,), (17,), (1,), (1,), (False,), (8,), (8,)),
    "2-D": ((9, 11), (3, 4), (2, 1), (1, 2), (False, True), (3, 4), None),
    "2-D in blocks": ((14, 15), (9, 11), (1, 1), (1, 1), (False, False), (4, 4), (4, 8)),
    "3-D in blocks": ((5, 6, 7), (3, 5, 4), (1, 1, 1), (1, 1, 1), (True, False, False), (2, 3, 4), (4, 4, 4)),
    "a ring": ((24,), (5,), (2,), (2,), (False,), (4,), None, (True,)),
    "a ring in blocks": ((10, 30), (3, 13), (1, 1), (1, 1), (False, False), (4, 5), (4, 8), (False, True)),
    "a ring that tiles go around": ((5, 6), (3, 5), (1, 1), (1, 1), (True, False), (2, 6), None, (False, True)),
    "coarser queries": ((24, 15), (5, 4), (3, 2), (1, 2), (False, True), (3, 2), None, (), (4, 3)),
    "coarser queries in blocks": ((48,), (24,), (1,), (1,), (False,), (4,), (8,), (), (3,)),
    "coarser queries on a ring": ((24,), (3,), (4,), (1,), (False,), (2,), None, (True,), (6,)),
}

SPLIT = {  # of the same, and devices along every axis
    "1-D": (((24,), (5,), (2,), (1,), (False,), (4,), None), (3,)),
    "groups that are cut": (((28, 8), (4, 3), (3, 1), (1, 1), (False, False), (2, 4), None), (2, 2)),
    "halos longer than parts": (((32,), (7,), (2,), (1,), (False,), (4,), None), (8,)),
    "strides, causal, in blocks": (((24, 16), (9, 5), (1, 1), (2, 3), (True, False), (4, 2), (4, 8)), (4, 2)),
    "periodic": (((24, 10), (5, 3), (2, 1), (1, 1), (False, False), (4, 5), None, (True, True)), (4, 1)),
    "coarser queries": (((24, 16), (5, 4), (3, 1), (1, 1), (False, False), (2, 4), None, (), (2, 4)), (2, 4)),
    "around": (((24,), (12,), (2,), (1,), (False,), (3,), (2,)), (3,)),
    "around a periodic axis": (((24,), (6,), (4,), (1,), (False,), (2,), None, (True,)), (4,)),
    "around, beside halos": (((8, 16), (8, 3), (1, 1), (1, 1), (True, False), (2, 4), None), (4, 2)),
}


def taken_apart(case):
    """Returns sides, window, tile and block."""
    spatial, kernel, dilation, stride, causal, tile, block, *more = case
    return spatial, Window(kernel, dilation, stride, causal, *more), tile, block


def of_devices(case, parts):
    """Returns sides, window, tile and block as devices have them."""
    spatial, window, *cut = taken_apart(case)
    splits = [
        split_axis(n, p, axis) if p > 1 else None for n, p, axis in zip(spatial, parts, window.axes(), strict=True)
    ]
    at_hand = [
        n if split is None else n // p + split.before + split.after
        for n, p, split in zip(spatial, parts, splits, strict=True)
    ]
    return tuple(at_hand), dataclasses.replace(window, split=tuple(splits)), *cut


ALL = {name: taken_apart(case) for name, case in LAYOUTS.items()}
ALL |= {f"split: {name}": of_devices(*case) for name, case in SPLIT.items()}


def seen_by(plan, kind=0):
    """Counts how often a layout has (token of tiles, token of halos) as neighbours, [L of tiles, L of halos]."""
    counts = np.zeros((plan.tokens, plan.halo_tokens), int)
    table = np.asarray(bias_table(plan.relative, None, jnp.float32))[:, 0] > MASKED / 2  # [rows, T, S]
    slots, near = np.indices(plan.tile).reshape(3, -1), np.indices(plan.block).reshape(3, -1)
    blocks = np.indices(plan.blocks).reshape(3, -1).T * plan.block
    length, apart, stride = (np.reshape(x, (3, 1)) for x in zip(*plan.rings, strict=True))
    for query, key, tile_class, *rest in plan.tiles[kind]:
        owned = (slots < np.reshape(rest[:3], (3, 1))).all(axis=0)
        for first, row in zip(blocks, plan.rows[tile_class], strict=True):
            slot = first[:, None] + near
            keys = key + np.tensordot(slot, plan.halo_steps, (0, 0))
            if len(rest) > 3:
                position = np.reshape(rest[3:], (3, 1)) + slot * apart
                keys = (np.where(length > 0, position % np.maximum(length, 1), position) * stride).sum(axis=0)
            t, s = np.nonzero(table[row] & owned[:, None])
            np.add.at(counts, (query + np.tensordot(slots, plan.steps, (0, 0))[t], keys[s]), 1)
    return counts


@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_hold_every_pair_once(case):
    spatial, window, tile, block = taken_apart(case)
    tokens = math.prod(spatial)
    # A query's output at values of one-hot keys is above 0 where it sees a key.
    one_hot = jnp.eye(tokens).reshape(1, *spatial, 1, tokens)
    query, key = (jnp.zeros((1, *sides, 1, 1)) for sides in (window.queries(spatial), spatial))
    options = dataclasses.asdict(window) | {"implementation": "reference"}
    del options["spacing"], options["sized"], options["split"]  # no arguments: shapes say them
    expected = np.asarray(neighborhood_attention(query, key, one_hot, **options)).reshape(-1, tokens) > 0
    assert (seen_by(layout(spatial, window, tile, block)) == expected).all()
    assert (seen_by(layout(spatial, window, tile, block, transposed=True)) == expected.T).all()


@pytest.mark.parametrize("case", SPLIT.values(), ids=SPLIT)
def test_layouts_of_all_devices_hold_every_pair_once(case):
    spatial, window, *cut = taken_apart(case[0])
    expected = seen_by(layout(spatial, window, *cut))
    at_hand, split, *_ = of_devices(*case)
    ways = [layout(at_hand, split, *cut, transposed) for transposed in (False, True)]
    found = np.zeros((2, *expected.shape), int)
    for places in np.ndindex(ways[0].kinds.shape):
        queries, keys = [], []
        for n, whole, axis, place in zip(at_hand, spatial, split.axes(), places, strict=True):
            query, key = (
                (0, 0) if axis.split is None else np.stack(axis.split.origins(n, periodic=axis.periodic))[:, place]
            )
            own = (n if axis.split is None else axis.split.own(n)) // axis.spacing
            queries.append(query // axis.spacing + np.arange(own))
            keys.append(
                (key + np.arange(n)) % whole
            )  # a halo beyond a border has keys of the other end, which none may see
        tokens = [
            np.ravel_multi_index(np.meshgrid(*x, indexing="ij"), sides).reshape(-1)
            for x, sides in ((queries, window.queries(spatial)), (keys, spatial))
        ]
        for plan, counts, transposed in zip(ways, found, (False, True), strict=True):
            pairs = seen_by(plan, plan.kinds[places])
            np.add.at(counts, np.ix_(*tokens), pairs.T if transposed else pairs)
    assert (found == expected).all()


def test_blocks_that_look_alike_share_rows():
    plan = layout((256, 256), Window((80, 80), (1, 1), (1, 1), (False, False)), (8, 8), (8, 8))
    assert plan.tiles.shape[1] == 1024
    assert math.prod(len(axis) for axis in plan.relative) < 2000  # of more than 100,000 blocks


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_sizes_are_those_of_the_layout(case, transposed):
    arguments = *case, transposed
    plan, found = layout(*arguments), sizes(*arguments)
    assert found.rows == math.prod(len(axis) for axis in plan.relative)
    assert (found.blocks, found.block) == (math.prod(plan.blocks), math.prod(plan.block))
    of_kinds = [np.bincount(tiles[:, 2], minlength=len(plan.rows)) for tiles in plan.tiles]
    assert found.class_tiles == tuple(np.max(of_kinds, axis=0))
    for longest in (1, 3, 100):
        assert sum(math.ceil(n / longest) for n in found.class_tiles) == plan.runs(longest).shape[1]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_halos_are_as_long_as_those_of_the_layout(case, kernel):
    spatial, window, tile, _ = case
    plan = layout(spatial, window, tile, None, kernel == "bwd_dkv")
    found, sides = halo(Case(kernel, spatial, window, 8, "float32", False, 90), tile), plan.block[3 - len(spatial) :]
    if any(window.split):  # that of the tiles of the whole map, which begin elsewhere
        assert all(0 <= n - side <= 2 for n, side in zip(found, sides, strict=True))
    else:
        assert tuple(found) == sides


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_the_furthest_token_is_what_kernels_count_to(case, transposed):
    arguments = *case, transposed
    plan = layout(*arguments)
    slot = np.indices([n * side for n, side in zip(plan.blocks, plan.block, strict=True)]).reshape(3, -1)
    tokens = plan.tiles[..., 1].max() + slot.T @ plan.halo_steps
    if plan.tiles.shape[2] > 6:
        tokens = 0
        for axis, (length, apart, stride) in enumerate(plan.rings):
            positions = plan.tiles[..., 6 + axis].max() + slot[axis] * apart
            tokens += stride * (length - 1 if length else positions.max())
    assert furthest(*arguments) == np.max(tokens)


def dispatched(made, longest, share, batch, programs):
    """Returns when a GPU is done that takes the next program whenever there is room, in entries of the batch of one tile."""
    free = [0] * (made.config.programs * made.multiprocessors)
    for _ in range(math.ceil(batch / share) * programs):
        for tiles in made.sizes.class_tiles:
            for first in range(0, tiles, longest):
                heapq.heapreplace(free, free[0] + min(longest, tiles - first) * share + 1)
    return max(free)


@pytest.mark.parametrize(
    ("class_tiles", "programs", "batch"),
    [
        ((56,), 2, 128),
        ((196,), 2, 128),
        ((7,), 8, 128),
        ((1,), 16, 64),
        ((3,), 2, 5),
        ((1, 22, 1, 22, 484, 22, 1, 22, 1), 6, 16),
    ],
)
def test_waves_of_programs_are_full(class_tiles, programs, batch):
    sizes = Sizes(rows=1, blocks=1, block=64, class_tiles=class_tiles)
    made = Schedule(sizes, Config((8, 8), None, 64, False, 4, programs=3), multiprocessors=132)
    longest, share = made.shares(batch, programs)
    took = dispatched(made, longest, share, batch, programs)
    work = sum(class_tiles) * programs * batch  # that there is, beside what a GPU does in that time
    assert work >= 0.8 * (took - 1) * min(3 * 132, work)
    one_by_one = dispatched(made, 1, 1, batch, programs)
    assert took <= one_by_one


def test_programs_that_start_less_often_are_as_many_as_run_at_a_time():
    sizes = Sizes(rows=1, blocks=1, block=64, class_tiles=(100, 100))
    made = Schedule(sizes, Config((8, 8), None, 64, False, 4, programs=1), multiprocessors=4)
    assert made.shares(1, 2) == (100, 1)
    assert made.shares(10, 1) == (50, 10)


@pytest.mark.parametrize("longest", [1, 3, 100])
def test_runs_are_of_one_class(longest):
    plan = layout((56, 56), Window((7, 7), (1, 1), (1, 1), (False, False)), (8, 8), None)
    runs = plan.runs(longest)[0]
    assert runs[0, 0] == 0
    assert runs[-1, 1] == plan.tiles.shape[1]
    assert (runs[1:, 0] == runs[:-1, 1]).all()
    assert (runs[:, 1] - runs[:, 0]).max() <= longest
    assert all(len(set(plan.tiles[0, a:b, 2])) == 1 for a, b in runs)


@pytest.mark.parametrize("longest", [1, 3, 100])
@pytest.mark.parametrize("case", SPLIT.values(), ids=SPLIT)
def test_runs_of_all_devices_are_of_the_same_classes(case, longest):
    plan = layout(*of_devices(*case))
    runs = plan.runs(longest)
    for tiles, of_kind in zip(plan.tiles, runs, strict=True):
        assert sorted(t for a, b in of_kind for t in range(a, b)) == list(range(len(tiles)))
        assert all(set(tiles[a:b, 2]) <= {c} for (a, b), c in zip(of_kind, plan.classes(runs), strict=True))
