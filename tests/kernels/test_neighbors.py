"""The indices of the keys that queries see: against those of the reference, written by hand, and bad input."""

import re

import numpy as np
import pytest

from natjax_kernels import neighbors
from natjax_kernels.cases import FEATURES
from natjax_kernels.reference import neighbours

pytestmark = pytest.mark.once


def test_by_hand():
    np.testing.assert_array_equal(neighbors((5,), 3), [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]])
    np.testing.assert_array_equal(neighbors(3, 2, is_causal=True), [[0, -1], [0, 1], [1, 2]])
    np.testing.assert_array_equal(neighbors((4,), 3, periodic=True), [[3, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 0]])
    np.testing.assert_array_equal(neighbors((2, 2), (2, -1), query_spatial=(1, 4))[0], [[0, 1, 2, 3]] * 4)
    assert neighbors((5,), 3).dtype == np.int32


@pytest.mark.parametrize("case", [case for case in FEATURES if not case.sized], ids=lambda case: case.name)
def test_are_what_the_reference_sees(case):
    sides = case.queries or case.spatial
    got = neighbors(case.spatial, **case.window_options(), query_spatial=sides)
    assert got.shape == (*sides, np.prod(case.window.kernel_size))
    problem = case.problem("float32")  # whose window has the grid of queries; a finer one is folded into heads
    expected = neighbours(case.spatial, problem.window)[0].reshape(*problem.window.queries(case.spatial), -1)
    for axis, repeats in enumerate(problem.folded):
        expected = np.repeat(expected, repeats, axis)
    seen = np.zeros(expected.shape, int)
    np.add.at(
        seen.reshape(-1, seen.shape[-1]), (np.arange(np.prod(sides))[:, None], got.reshape(np.prod(sides), -1)), 1
    )
    seen[..., -1] -= (got == -1).sum(-1)  # -1 is no key, and to NumPy the last one
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    ("spatial", "options", "said"),
    [
        ((), {}, "spatial must be 1 to 3 positive integers; got ()"),
        ((6, 0), {}, "got (6, 0)"),
        ((6.0,), {}, "got (6.0,)"),
        ((2,), {}, "3 * 1 = 3 > 2"),
        ((6,), {"query_spatial": ()}, "query_spatial must be 1 to 3 positive integers; got ()"),
        ((6,), {"query_spatial": 0}, "query_spatial must be 1 to 3 positive integers; got 0"),
        ((6,), {"query_spatial": 4}, "4 queries and 6 keys"),
        ((6,), {"query_spatial": (6, 6)}, "1 sides as spatial has; got (6, 6)"),
    ],
)
def test_bad_input(spatial, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        neighbors(spatial, 3, **options)
