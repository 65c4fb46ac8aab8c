"""The plan against the definition written once more, as loops over single tokens."""

import itertools
import tracemalloc

import numpy as np
import pytest

from natjax_kernels.plan import plan, plan_axis, tile_classes
from natjax_kernels.window import AxisWindow, Window, windows

pytestmark = pytest.mark.once
LENGTHS = range(2, 26)


def settings(length):
    """Every legal window of an axis."""
    for kernel in range(1, length + 1):
        for dilation in range(1, length // kernel + 1):
            for stride, spacing in itertools.product(range(1, kernel + 1), range(1, length + 1)):
                if length % spacing or (length > 12 and spacing > 3):
                    continue
                for causal in (False, True):
                    yield AxisWindow(kernel, dilation, stride, causal, spacing=spacing)
                if length % (dilation * stride) == 0:
                    yield AxisWindow(kernel, dilation, stride, periodic=True, spacing=spacing)


def neighbours(length, position, axis):
    """What a query at a position sees, with the distance in keys of the group: a run around its stride group's leader."""
    group = [i for i in range(length) if i % axis.dilation == position % axis.dilation]
    place = group.index(position)
    mates = [
        i for i in range(len(group)) if i // axis.stride == place // axis.stride
    ]  # cut short at the end of the axis
    if axis.causal:
        first, last = mates[-1] - axis.kernel + 1, place
        return {group[i]: i - place for i in range(max(first, 0), last + 1)}
    first = min(mates[0] + axis.stride // 2, mates[-1]) - axis.kernel // 2
    if axis.periodic:
        return {group[i % len(group)]: i - place for i in range(first, first + axis.kernel)}
    while first < 0:
        first += 1
    while first + axis.kernel > len(group):
        first -= 1
    return {group[i]: i - place for i in range(first, first + axis.kernel)}


def queries(length, axis):
    """Positions of the queries among the keys."""
    return [i * axis.spacing + axis.spacing // 2 for i in range(length // axis.spacing)]


def offsets(length, axis):
    """The entry of the bias of every query and key, [queries, L]; -1 where the key is no neighbour."""
    table = np.full((length // axis.spacing, length), -1)
    for query, position in enumerate(queries(length, axis)):
        for key, distance in neighbours(length, position, axis).items():
            table[query, key] = distance + axis.kernel - 1
    return table


@pytest.mark.parametrize("length", LENGTHS)
def test_windows_are_those_of_the_definition(length):
    for axis in settings(length):
        if axis.spacing > 1:
            continue
        start, end = windows(length, axis)
        size = length // axis.dilation if axis.periodic else length
        for query in range(length):
            run = [j % size * axis.dilation + query % axis.dilation for j in range(start[query], end[query])]
            assert run == list(neighbours(length, query, axis)), (axis, query)


@pytest.mark.parametrize("length", LENGTHS)
def test_axis_plans_hold_every_pair_once(length):
    for axis in settings(length):
        expected = offsets(length, axis)
        for tile in {1, 3, axis.kernel, length} if length < 10 else {4}:
            check(plan_axis.__wrapped__(length, axis, tile), expected)


@pytest.mark.parametrize("length", range(2, 16))
def test_transposed_plans_hold_every_pair_once(length):
    for axis in settings(length):
        for tile in (1, 4):
            made = plan_axis.__wrapped__(length, axis, tile, True)
            relative = made.pairs.relative()[made.classes]  # [tiles, T, S], T of keys
            tiles, t, s = np.nonzero((relative >= 0) & (made.queries >= 0)[:, :, None])
            key, query = made.queries[tiles, t], made.keys[tiles, s]
            assert sorted(made.queries[made.queries >= 0]) == list(range(length))
            assert_pairs_once(query, key, relative[tiles, t, s], offsets(length, axis))


def check(axis, expected):
    length = len(expected)
    owned = axis.queries >= 0
    assert sorted(axis.queries[owned]) == list(range(length))
    assert (axis.queries.reshape(-1)[axis.query_slot] == np.arange(length)).all()

    relative = axis.pairs.relative()[axis.classes]  # [tiles, T, S]
    tile, t, s = np.nonzero((relative >= 0) & owned[:, :, None])
    query, key = axis.queries[tile, t], axis.keys[tile, s]
    assert (key >= 0).all()
    assert_pairs_once(query, key, relative[tile, t, s], expected)
    assert (relative[~owned] == 0).all()

    first = np.argmax(relative >= 0, axis=-1)[owned]
    assert (axis.pairs.first[axis.classes][owned] == first).all()

    slots = axis.keys.size
    position, column = np.nonzero(axis.key_slots >= 0)
    assert (axis.keys.reshape(-1)[axis.key_slots[position, column]] == position).all()
    got = position * slots + axis.key_slots[position, column]
    assert len(np.unique(got)) == len(got)
    assert np.isin(key * slots + tile * axis.keys.shape[1] + s, got).all()


def assert_pairs_once(query, key, offset, expected):
    pairs, got = np.zeros_like(expected), np.full_like(expected, -1)
    np.add.at(pairs, (query, key), 1)
    got[query, key] = offset
    assert (pairs == (expected >= 0)).all()
    assert (got == expected).all()


def test_alike_tiles_share_classes():
    assert len(plan_axis(56, AxisWindow(7), 8).pairs) == 3
    assert len(plan_axis(56, AxisWindow(7, 8), 7).pairs) == 1
    assert len(plan_axis(4096, AxisWindow(7), 8).pairs) == 3


def test_planning_takes_the_memory_of_classes_and_not_of_tiles():
    length, kernel = 65536, 512
    tracemalloc.start()
    axis = plan_axis.__wrapped__(length, AxisWindow(kernel), 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(axis.pairs) < 20
    assert peak < 2 * length * kernel  # bytes: one integer per query and neighbour would be 8 of them


def test_classes_of_a_map_are_the_products_of_those_of_its_axes():
    window = Window((3, 5), (1, 2), (1, 1), (False, False))
    axes = plan((12, 20), window, (4, 5))
    expected = [a * len(axes[1].pairs) + b for a in axes[0].classes for b in axes[1].classes]
    assert tile_classes(axes).tolist() == expected
