"""Plans of axes that are split over devices: together they have every pair of query and key once, with its entry of the bias."""

import jax.numpy as jnp
import numpy as np
import pytest

from natjax_kernels.plan import plan_axis, plan_split_axis
from natjax_kernels.split import Split, split_axis, windows_of_kinds
from natjax_kernels.window import AxisWindow, windows


def drawn(seed):
    """Draws a window, a number of devices that divides its axis, and the side of a tile."""
    rng = np.random.default_rng(seed)
    parts, dilation = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    spacing, periodic = int(rng.integers(1, 4)), bool(rng.random() < 0.3)
    stride = int(rng.integers(1, 4))
    unit = np.lcm(parts * spacing, dilation * stride if periodic else 1)
    length = int(unit * rng.integers(1, max(2, 80 // unit)))
    most = length // dilation
    if most < max(2, stride):
        return drawn(seed + 10_000)
    kernel = int(rng.integers(max(2, stride), most + 1)) if rng.random() < 0.7 else most
    sized = not periodic and spacing == 1 and bool(rng.random() < 0.2)
    axis = AxisWindow(kernel, dilation, stride, not periodic and bool(rng.random() < 0.3), periodic, spacing, sized)
    return length, axis, parts, int(rng.integers(1, 9))


def pairs_of(plan, query_origin, key_origin, length):
    """Yields the pairs of one plan, (query, key, entry), along the whole axis."""
    for tile, of_class in enumerate(plan.classes):
        entries = plan.pairs.relative()[of_class]
        for slot, query in enumerate(plan.queries[tile]):
            if query >= 0:
                for key in np.flatnonzero(entries[slot] >= 0):
                    assert plan.keys[tile, key] >= 0
                    yield query + query_origin, (plan.keys[tile, key] + key_origin) % length, entries[slot, key]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_devices_have_every_pair_once(seed, transposed):
    length, axis, parts, tile = drawn(seed)
    split = split_axis(length, parts, axis)
    own = length // parts
    here = split.before + own + split.after
    of_device = AxisWindow(**{**vars(axis), "split": split})
    plan = plan_split_axis(here, of_device, tile, transposed)
    found = []
    for place, kind in enumerate(plan.kind):
        queries, keys = plan.origins[:, place] // [axis.spacing, 1]
        origins = (keys, queries) if transposed else (queries, keys)
        found += pairs_of(plan.kinds[kind], *origins, length)
    if transposed:  # keys of halos are several devices'
        found = [(query, key % length, entry) for key, query, entry in found]
    whole = [(int(q), int(k), int(e)) for q, k, e in pairs_of(plan_axis(length, axis, tile), 0, 0, length)]
    assert sorted((int(q), int(k), int(e)) for q, k, e in found) == sorted(whole)


def test_what_all_devices_have_alike_is_known_when_a_program_is_traced():
    split = split_axis(256, 64, AxisWindow(256))
    plan = plan_split_axis(4, AxisWindow(256, split=split), 4)
    assert (len(plan.kind), len(plan.kinds)) == (64 * 64, 127)  # as many as distances between queries and keys
    of_device = plan.at(jnp.int32(5), jnp)
    static = {name: isinstance(getattr(of_device, name), np.ndarray) for name in ("first_key", "keys", "classes")}
    assert static == {"first_key": True, "keys": True, "classes": False}


def test_halos_are_as_long_as_windows_reach():
    assert split_axis(64, 8, AxisWindow(7)) == Split(8, 3, 3)
    assert split_axis(64, 8, AxisWindow(4, dilation=2)) == Split(8, 4, 2)
    assert split_axis(64, 8, AxisWindow(7, causal=True)) == Split(8, 6, 0)
    assert split_axis(64, 8, AxisWindow(4, periodic=True)) == Split(8, 2, 1)
    # Parts of two tokens: windows at the borders shift inward, far beyond them.
    assert split_axis(64, 32, AxisWindow(7)) == Split(32, 5, 5)
    assert split_axis(8, 2, AxisWindow(7)) == Split(2, 3, 3)  # each device gets one of them
    assert split_axis(64, 8, AxisWindow(64)) == Split(8, ring=range(0, -8, -1))  # halos would be all other parts, twice
    # Halos would be as many, all of them in memory.
    assert split_axis(64, 8, AxisWindow(64, causal=True)) == Split(8, ring=range(0, -8, -1))
    # The part on the other side is both before and behind.
    assert split_axis(64, 8, AxisWindow(64, periodic=True)) == Split(8, ring=range(4, -5, -1))
    assert split_axis(64, 8, AxisWindow(21, dilation=3)) == Split(8, ring=range(0, -8, -1))


def test_nobody_writes_to_what_is_cached():
    split = split_axis(32, 4, AxisWindow(32))
    axes = AxisWindow(32), AxisWindow(32, split=split)
    of_device = plan_split_axis(8, axes[1], 4).at(0, np)
    arrays = *windows_of_kinds(8, axes[0]), *windows_of_kinds(8, axes[1]), of_device.first_key
    assert not any(x.flags.writeable for x in arrays)


def test_few_devices_of_a_periodic_axis_have_halos():
    """Around a ring more travels there than halos, which is worth it where a device then holds half as many keys at most."""
    assert split_axis(16, 2, AxisWindow(9, periodic=True)) == Split(2, 4, 4)
    assert split_axis(24, 3, AxisWindow(24, periodic=True)) == Split(3, 12, 11)
    assert split_axis(32, 4, AxisWindow(25, periodic=True)) == Split(4, ring=range(2, -3, -1))


def test_parts_that_a_ring_moves():
    """The own part is nobody else's: only on a periodic axis it may come again."""
    splits = Split(4), split_axis(32, 4, AxisWindow(32)), split_axis(32, 4, AxisWindow(25, periodic=True))
    assert [split.passed for split in splits] == [0, 3, 5]


@pytest.mark.parametrize(
    "axis", [AxisWindow(5), AxisWindow(4, dilation=3), AxisWindow(8, stride=3, causal=True)], ids=str
)
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_halos_hold_what_windows_see_and_no_more(axis, parts):
    length = 48
    start, end = windows(length, axis)
    position = np.arange(length)
    first, last = (edge * axis.dilation + position % axis.dilation for edge in (start, end - 1))
    part = position // (length // parts)
    split = split_axis(length, parts, axis)
    assert split.before == max(0, np.max(part * (length // parts) - first))
    assert split.after == max(0, np.max(last - (part + 1) * (length // parts) + 1))
