"""Words of messages."""

import pytest

from natjax.text import counted, first_few

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version


def test_numbers_of_things():
    assert [counted(n, "image") for n in (0, 1, 2, 1200)] == ["0 images", "1 image", "2 images", "1,200 images"]
    assert [counted(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]


def test_the_first_of_many_names():
    assert first_few([]) == ""
    assert first_few(tuple("abcde")) == "a, b, c, d, e"
    assert first_few(list("abcdef")) == "a, b, c, d, e and 1 more"
    assert first_few(list("abc"), most=2, separator="; ") == "a; b and 1 more"
