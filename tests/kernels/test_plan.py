"""The plan against the definition written once more, as loops over single tokens."""

import itertools
import tracemalloc

import numpy as np
import pytest

from natjax_kernels.plan import Window, plan, plan_axis, tile_classes, transposed_windows, windows

pytestmark = pytest.mark.once
LENGTHS = range(2, 26)


def settings(length):
    """Every legal (kernel, dilation, stride, causal) of an axis."""
    for kernel in range(2, length + 1):
        for dilation in range(1, length // kernel + 1):
            yield from itertools.product([kernel], [dilation], range(1, kernel + 1), [False, True])


def neighbours(length, query, kernel, dilation, stride, causal):
    """The positions that a query sees: a run of its dilation group around its stride group's leader."""
    group = [i for i in range(length) if i % dilation == query % dilation]
    place = group.index(query)
    mates = [i for i in range(len(group)) if i // stride == place // stride]  # cut short at the end of the axis
    if causal:
        run = range(mates[-1] - kernel + 1, place + 1)
        return [group[i] for i in run if i >= 0]
    leader = min(mates[0] + stride // 2, mates[-1])
    first = leader - kernel // 2
    while first < 0:
        first += 1
    while first + kernel > len(group):
        first -= 1
    return group[first : first + kernel]


@pytest.mark.parametrize("length", LENGTHS)
def test_windows_are_those_of_the_definition(length):
    for setting in settings(length):
        start, end = windows(length, *setting)
        dilation = setting[1]
        for query in range(length):
            seen = [j * dilation + query % dilation for j in range(start[query], end[query])]
            assert seen == neighbours(length, query, *setting), (setting, query)


@pytest.mark.parametrize("length", LENGTHS)
def test_axis_plans_hold_every_pair_once(length):
    for setting in settings(length):
        kernel, dilation, _, _ = setting
        seen = seen_of(length, *setting)
        for tile in {1, 3, kernel, length} if length < 12 or setting[2] in (1, kernel) else {4}:
            check(plan_axis.__wrapped__(length, *setting, tile), seen, kernel, dilation)


@pytest.mark.parametrize("length", LENGTHS)
def test_transposed_windows_hold_the_queries_that_see_a_key(length):
    for setting in settings(length):
        seen = seen_of(length, *setting)
        start, end = transposed_windows(length, *setting)
        for key in range(length):
            run = [j * setting[1] + key % setting[1] for j in range(start[key], end[key])]
            assert run == np.flatnonzero(seen[:, key]).tolist(), (setting, key)


@pytest.mark.parametrize("length", range(2, 14))
def test_transposed_plans_hold_every_pair_once(length):
    for setting in settings(length):
        kernel, dilation, _, _ = setting
        axis = plan_axis.__wrapped__(length, *setting, 4, True)
        relative = axis.relative[axis.classes]  # [tiles, T, S], T of keys
        tile, t, s = np.nonzero((relative >= 0) & (axis.queries >= 0)[:, :, None])
        key, query = axis.queries[tile, t], axis.keys[tile, s]
        pairs = np.zeros((length, length), int)
        np.add.at(pairs, (query, key), 1)
        assert (pairs == seen_of(length, *setting)).all()
        assert (relative[tile, t, s] == (key - query) // dilation + kernel - 1).all()


def seen_of(length, kernel, dilation, stride, causal):
    """Which keys every query sees, [L, L]."""
    start, end = windows(length, kernel, dilation, stride, causal)
    position = np.arange(length)
    seen = position[:, None] % dilation == position % dilation
    return seen & (start[:, None] <= position // dilation) & (position // dilation < end[:, None])


def check(axis, seen, kernel, dilation):
    length = len(seen)
    owned = axis.queries >= 0
    assert sorted(axis.queries[owned]) == list(range(length))
    assert (axis.queries.reshape(-1)[axis.query_slot] == np.arange(length)).all()

    relative = axis.relative[axis.classes]  # [tiles, T, S]
    tile, t, s = np.nonzero((relative >= 0) & owned[:, :, None])
    query, key = axis.queries[tile, t], axis.keys[tile, s]
    assert (key >= 0).all()
    pairs = np.zeros((length, length), int)
    np.add.at(pairs, (query, key), 1)
    assert (pairs == seen).all()
    assert (relative[tile, t, s] == (key - query) // dilation + kernel - 1).all()
    assert (relative[~owned] == 0).all()

    first = axis.first_slot[axis.classes][owned]
    assert (axis.keys[np.nonzero(owned)[0], first] == np.argmax(seen[axis.queries[owned]], axis=1)).all()

    slots = axis.keys.size
    position, column = np.nonzero(axis.key_slots >= 0)
    got = position * slots + axis.key_slots[position, column]
    assert (np.sort(got) == np.unique(key * slots + tile * axis.keys.shape[1] + s)).all()


def test_alike_tiles_share_classes():
    assert len(plan_axis(56, 7, 1, 1, False, 8).relative) == 3
    assert len(plan_axis(56, 7, 8, 1, False, 7).relative) == 1
    assert len(plan_axis(4096, 7, 1, 1, False, 8).relative) == 3


def test_planning_takes_the_memory_of_classes_and_not_of_tiles():
    length, kernel = 65536, 512
    tracemalloc.start()
    axis = plan_axis.__wrapped__(length, kernel, 1, 1, False, 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(axis.relative) < 20
    assert peak < 2 * length * kernel  # bytes: one integer per query and neighbour would be 8 of them


def test_classes_of_a_map_are_the_products_of_those_of_its_axes():
    window = Window((3, 5), (1, 2), (1, 1), (False, False))
    axes = plan((12, 20), window, (4, 5))
    expected = [a * len(axes[1].relative) + b for a in axes[0].classes for b in axes[1].classes]
    assert tile_classes(axes).tolist() == expected
