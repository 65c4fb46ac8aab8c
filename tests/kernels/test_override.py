"""A configuration that overrides is what the op uses, as tuning relies on."""

import re

import jax
import pytest

from natjax_kernels import neighborhood_attention
from natjax_kernels.fused.configurations import KERNELS, Case, override
from natjax_kernels.triton.choice import candidates, choose
from natjax_kernels.window import Window

pytestmark = pytest.mark.once


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_overriding_configuration_is_what_the_op_uses(kernel, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    case = Case(kernel, (8, 8), Window((3, 3), (1, 1), (1, 1), (False, False)), 16, "float32", False, 90)
    tokens = jax.ShapeDtypeStruct((1, 8, 8, 1, 16), "float32")

    def op(q, k, v):
        return neighborhood_attention(q, k, v, kernel_size=3, implementation="triton")

    def program():
        text = str(jax.make_jaxpr(lambda *x: jax.vjp(op, *x)[1](x[0]))(tokens, tokens, tokens))
        return re.sub(r"0x[0-9a-f]+", "", text)  # addresses of functions

    chosen = choose(case, "cpu")
    other = next(c for c in candidates(case) if c.tile != chosen.tile)
    before = program()
    assert program() == before
    with override(case, other):
        assert choose(case, "cpu") == other
        assert program() != before
        with override(case, chosen):
            assert choose(case, "cpu") == chosen
        assert choose(case, "cpu") == other
    assert choose(case, "cpu") == chosen
