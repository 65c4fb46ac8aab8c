"""Calls that the op refuses, and how it says so; which implementation it takes."""

import functools
import logging
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from natjax_kernels import explain, neighborhood_attention, neighborhood_attention_with_weights
from natjax_kernels.problem import make_problem

pytestmark = pytest.mark.once


def tokens(*shape, dtype="float32"):
    return jnp.zeros(shape, dtype)


MAP = (1, 8, 9, 2, 4)
# What is wrong, and what the message must name: the argument and the value that it got.
ILLEGAL = {
    "rank 3": ({"query": tokens(8, 2, 4)}, "query", "(8, 2, 4)"),
    "rank 7": ({"query": tokens(1, 2, 2, 2, 2, 2, 4)}, "query", "(1, 2, 2, 2, 2, 2, 4)"),
    "no tokens": ({"query": tokens(1, 0, 9, 2, 4)}, "query", "(1, 0, 9, 2, 4)"),
    "no heads": ({"query": tokens(1, 8, 9, 0, 4)}, "query", "(1, 8, 9, 0, 4)"),
    "no channels": ({"query": tokens(1, 8, 9, 2, 0)}, "query", "(1, 8, 9, 2, 0)"),
    "key rank": ({"key": tokens(1, 8, 2, 4)}, "key", "(1, 8, 2, 4)"),
    "grid of keys": ({"key": tokens(1, 8, 6, 2, 4)}, "queries", "9 queries and 6 keys"),
    "grid of keys, both ways": ({"key": tokens(1, 3, 9, 2, 4)}, "queries", "8 queries and 3 keys"),
    "key heads": ({"key": tokens(1, 8, 9, 4, 4)}, "key", "(1, 8, 9, 4, 4)"),
    "key channels": ({"key": tokens(1, 8, 9, 2, 5)}, "key", "(1, 8, 9, 2, 5)"),
    "value map": ({"value": tokens(1, 8, 8, 2, 4)}, "value", "(1, 8, 8, 2, 4)"),
    "value heads": ({"value": tokens(1, 8, 9, 1, 4)}, "value", "(1, 8, 9, 1, 4)"),
    "value without channels": ({"value": tokens(1, 8, 9, 2, 0)}, "value", "(1, 8, 9, 2, 0)"),
    "integers": ({"query": tokens(*MAP, dtype="int32")}, "query", "int32"),
    "complex": ({"query": tokens(*MAP, dtype="complex64")}, "query", "complex64"),
    "key dtype": ({"key": tokens(*MAP, dtype="bfloat16")}, "key", "bfloat16"),
    "value dtype": ({"value": tokens(*MAP, dtype="float16")}, "value", "float16"),
    "kernel of 1": ({"kernel_size": 1}, "kernel_size", "1"),
    "kernel of 0": ({"kernel_size": (3, 0)}, "kernel_size", "(3, 0)"),
    "fractional kernel": ({"kernel_size": 3.0}, "kernel_size", "3.0"),
    "boolean kernel": ({"kernel_size": True}, "kernel_size", "True"),
    "no kernel": ({"kernel_size": None}, "kernel_size", "None"),
    "kernel of three axes": ({"kernel_size": (3, 3, 3)}, "kernel_size", "(3, 3, 3)"),
    "kernel too large": ({"kernel_size": 9}, "kernel_size * dilation", "9 * 1 = 9 > 8"),
    "dilation too large": ({"dilation": (1, 4)}, "axis 1", "3 * 4 = 12 > 9"),
    "dilation of 0": ({"dilation": 0}, "dilation", "0"),
    "negative dilation": ({"dilation": (1, -2)}, "dilation", "(1, -2)"),
    "stride of 0": ({"stride": 0}, "stride", "0"),
    "stride beyond the kernel": ({"stride": (1, 4)}, "stride", "4 > kernel_size 3"),
    "stride of one axis": ({"stride": (1,)}, "stride", "(1,)"),
    "causal number": ({"is_causal": 1}, "is_causal", "1"),
    "causal of three axes": ({"is_causal": (True, False, True)}, "is_causal", "(True, False, True)"),
    "bias rank": ({"rpb": tokens(2, 5)}, "rpb", "(2, 5)"),
    "bias heads": ({"rpb": tokens(1, 5, 5)}, "rpb", "(1, 5, 5)"),
    "bias size": ({"rpb": tokens(2, 5, 7)}, "rpb", "(2, 5, 7)"),
    "bias dtype": ({"rpb": tokens(2, 5, 5, dtype="int32")}, "rpb", "int32"),
    "bias of another even kernel": ({"kernel_size": (3, 4), "rpb": tokens(2, 5, 8)}, "rpb", "(2, 5, 8)"),
    "periodic and causal": ({"periodic": (True, False), "is_causal": True}, "periodic", "axis 0"),
    "periodic as a number": ({"periodic": 1}, "periodic", "1"),
    "periodic with a remainder": ({"periodic": True, "dilation": 2}, "periodic", "9"),
    "all of an axis with a remainder": ({"kernel_size": -1, "dilation": 2}, "kernel_size", "9"),
    "another negative kernel": ({"kernel_size": -2}, "kernel_size", "-2"),
    "additional keys alone": ({"additional_keys": tokens(1, 3, 2, 4)}, "additional_values", "additional_keys"),
    "additional values alone": ({"additional_values": tokens(1, 3, 2, 4)}, "additional_keys", "additional_values"),
    "additional keys of other channels": (
        {"additional_keys": tokens(1, 3, 2, 5), "additional_values": tokens(1, 3, 2, 4)},
        "additional_keys",
        "with those of key, here [1, 'S', 2, 4]; got (1, 3, 2, 5)",
    ),
    "fewer additional values": (
        {"additional_keys": tokens(1, 3, 2, 4), "additional_values": tokens(1, 2, 2, 4)},
        "additional_values",
        "(1, 2, 2, 4)",
    ),
    "additional keys of another dtype": (
        {"additional_keys": tokens(1, 3, 2, 4, dtype="bfloat16"), "additional_values": tokens(1, 3, 2, 4)},
        "additional_keys",
        "bfloat16",
    ),
    "mask of another map": ({"key_mask": tokens(1, 9, 8, dtype="bool")}, "key_mask", "(1, 9, 8)"),
    "mask of numbers": ({"key_mask": tokens(1, 8, 9)}, "key_mask", "float32"),
    "array as scale": ({"scale": jnp.ones(())}, "scale", "1."),
    "scale that is no number": ({"scale": float("nan")}, "scale", "nan"),
    "infinite scale": ({"scale": float("inf")}, "scale", "inf"),
    "text as scale": ({"scale": "1"}, "scale", "'1'"),
    "boolean scale": ({"scale": True}, "scale", "True"),
    "no cap": ({"logits_soft_cap": 0}, "logits_soft_cap", "0"),
    "cap below float32's numbers": ({"logits_soft_cap": 1e-39}, "logits_soft_cap", "1e-39"),
    "cap above them": ({"logits_soft_cap": 1e39}, "logits_soft_cap", "1e+39"),
    "array as cap": ({"logits_soft_cap": jnp.ones(())}, "compiled for one", "1."),
    "scale above float32's numbers": ({"scale": 10**400}, "scale", "1000000"),
    "text as cap": ({"logits_soft_cap": "50"}, "logits_soft_cap", "'50'"),
}


@pytest.mark.parametrize(("changes", "name", "value"), ILLEGAL.values(), ids=ILLEGAL)
@pytest.mark.parametrize("function", [neighborhood_attention, neighborhood_attention_with_weights, explain])
def test_illegal_calls_name_argument_and_value(function, changes, name, value):
    if "query" in changes:  # so that nothing but the query itself is wrong
        changes = {"key": changes["query"], "value": changes["query"], **changes}
    arguments = {"query": tokens(*MAP), "key": tokens(*MAP), "value": tokens(*MAP), "kernel_size": 3, **changes}
    with pytest.raises(ValueError, match=re.escape(name)) as error:
        function(**arguments)
    assert value in str(error.value)


class Tensor:
    """As PyTorch's is: with a shape and a dtype, but no array of JAX's."""

    shape, dtype = MAP, "torch.float32"


Tensor.__module__ = "torch"


@pytest.mark.parametrize("function", [neighborhood_attention, neighborhood_attention_with_weights, explain])
@pytest.mark.parametrize("name", ["query", "key", "value", "rpb"])
@pytest.mark.parametrize(
    ("x", "said"),
    [
        ([[1.0]], "got list. Pass jnp.asarray(x)."),
        (Tensor(), "got torch.Tensor. Pass x.detach().cpu().numpy()."),
        ("text", "got str."),
        (np.array(["text"]), "got one of dtype <U4."),
    ],
    ids=["list", "tensor", "text", "array of text"],
)
def test_what_is_no_array_is_a_type_error(function, name, x, said):
    arguments = {"query": tokens(*MAP), "key": tokens(*MAP), "value": tokens(*MAP), "kernel_size": 3, name: x}
    with pytest.raises(TypeError, match=rf"^{name} must be an array of .*{re.escape(said)}$"):
        function(**arguments)


class Variable:
    """Holds an array, as `nnx.Param` does."""

    def __init__(self, array):
        self.array = array

    def __jax_array__(self):
        return self.array


@pytest.mark.parametrize("how", [Variable, np.asarray])
def test_arrays_of_numpy_and_variables_are_arrays(how):
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=MAP), "float32") for _ in range(3))
    rpb = jnp.asarray(rng.normal(size=(2, 5, 5)), "float32")
    for op in (neighborhood_attention, lambda *x, **options: neighborhood_attention_with_weights(*x, **options)[0]):
        expected = op(query, key, value, rpb=rpb, kernel_size=3)
        got = op(*map(how, (query, key, value)), rpb=how(rpb), kernel_size=3)
        np.testing.assert_array_equal(got, expected)
    if how is Variable:  # also where it holds what is traced
        traced = jax.jit(lambda r: neighborhood_attention(query, key, value, rpb=Variable(r), kernel_size=3))(rpb)
        np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-5)


def test_numbers_of_numpy_are_numbers():
    x = tokens(*MAP)
    plain = make_problem(x, x, x, kernel_size=3, dilation=(1, 2), stride=2, is_causal=(True, False), scale=0.5)
    for integer, real in ((np.int64, np.float32), (np.uint8, np.float64)):
        options = {"kernel_size": integer(3), "dilation": np.array([1, 2], integer), "stride": np.array(2, integer)}
        got = make_problem(x, x, x, **options, is_causal=np.array([True, False]), scale=real(0.5))
        assert (got.window, got.logits) == (plain.window, plain.logits)
        assert {type(n) for n in (*got.window.kernel_size, *got.window.dilation, *got.window.stride)} == {int}
    assert make_problem(x, x, x, kernel_size=3, scale=np.array(0.5)).logits.scale == 0.5


def test_explain_names_its_own_arguments():
    x = tokens(*MAP)
    with pytest.raises(TypeError, match=r"explain\(\) got an unexpected keyword argument 'kernal_size'"):
        explain(x, x, x, kernal_size=3)  # ty: ignore[missing-argument, unknown-argument]


@pytest.mark.parametrize("shape", ["b, h, 9, 2, 4", "2, 8, w, 2, 4"])
def test_symbolic_maps_are_refused(shape):
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
    with pytest.raises(
        ValueError, match=r"query must have a known size along every axis but the batch.*batch alone symbolic"
    ):
        explain(x, x, x, kernel_size=3)


def test_traced_scales_are_refused():
    def run(scale):
        return neighborhood_attention(tokens(*MAP), tokens(*MAP), tokens(*MAP), kernel_size=3, scale=scale)

    with pytest.raises(ValueError, match="scale the query"):
        jax.jit(run)(0.5)


def test_lists_and_scalars_are_read_alike():
    x = tokens(*MAP)
    scalars = make_problem(x, x, x, kernel_size=3, dilation=2, is_causal=True)
    lists = make_problem(x, x, x, kernel_size=[3, 3], dilation=(2, 2), is_causal=[True, True], scale=4**-0.5)
    assert (scalars.window, scalars.logits) == (lists.window, lists.logits)


def test_implementation_names(implementation):
    x = tokens(*MAP)
    op = functools.partial(neighborhood_attention, kernel_size=3, implementation=implementation)
    assert jax.eval_shape(op, x, x, x).shape == MAP
    assert explain(x, x, x, kernel_size=3, implementation=implementation) == f"{implementation}: named by the caller"


def test_unknown_implementations():
    x = tokens(*MAP)
    with pytest.raises(ValueError, match=r"implementation must be None or one of .*'xla'.*; got 'XLA'"):
        neighborhood_attention(x, x, x, kernel_size=3, implementation="XLA")


def test_named_implementations_never_fall_back(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    x = tokens(*MAP)
    for function in (neighborhood_attention, explain):
        with pytest.raises(
            NotImplementedError, match="implementation='triton' cannot run: the fused kernels run on NVIDIA"
        ):
            function(x, x, x, kernel_size=3, implementation="triton")


def test_the_choice_is_told(caplog):
    x = jax.ShapeDtypeStruct(MAP, "float32")
    said = explain(x, x, x, kernel_size=3)
    assert said.startswith("xla: not triton, as ")
    with caplog.at_level(logging.DEBUG, "natjax"):
        jax.eval_shape(lambda x: neighborhood_attention(x, x, x, kernel_size=3), x)
    assert said.removeprefix("xla: ") in caplog.text
