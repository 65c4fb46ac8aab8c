"""What XLA's compiler for TPUs makes of natjax, without a TPU: bytes, collectives, dtypes.

Needs an environment of its own, which `make test-deviceless` makes; skipped elsewhere.
"""

import importlib.util

import pytest
import tpu
import traffic
from deviceless import check_apart

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not here: make test-deviceless"
)
# Times the floor that the op may move; docs/scaling.md has figures. Gathers and heads in lanes of their own took 77 on v5e.
FLOORS = {"v5e": 3, "v6e": 4, "v5p": 20}
# Models take much longer to compile with the default, see docs/scaling.md.
QUICK = {"JAX_OPTIMIZATION_LEVEL": "O0"}


@pytest.mark.parametrize("kind", FLOORS)
def test_bytes_of_the_op(kind):
    """Of level 2, with gradients."""
    found = check_apart("op, level 2", kind)
    assert found["hbm_bytes"] < FLOORS[kind] * tpu.floor_bytes(2, 12)
    assert found["collectives"] == {}
    assert not found["float64"]


def test_halos_are_all_that_travels():
    """Keys and values to both neighbours, and their gradients back; the bias's gradient is summed."""
    found = check_apart("op on 2 x 2, rows", "v5e")
    assert found["collectives"] == {"collective-permute": 8, "all-reduce": 1}


@pytest.mark.parametrize("kind", [*FLOORS, "7x"])
def test_a_model_whose_images_are_split_by_rows(kind):
    """Every layer of NAT-Tiny takes keys and values of both neighbours, every convolution a row; pooling is summed."""
    found = check_apart("forward on 2 x 2, rows", kind, **QUICK)
    assert found["collectives"] == {"collective-permute": 4 * 30 + 5, "all-reduce": 1}
    assert not found["float64"]


@pytest.mark.parametrize("kind", FLOORS)
def test_a_training_step_whose_images_are_split_by_rows(kind):
    """Gradients of halos go back, but to pixels; gradients of parameters are summed."""
    found = check_apart("step of 4 layers on 2 x 2, rows", kind, **QUICK)
    assert found["collectives"].pop("collective-permute") == 8 * 4 + 5 + 4
    assert found["collectives"].keys() <= {"all-reduce", "all-gather"}
    assert found["gathered_bytes"] <= 2048  # what random numbers of a row are made of
    assert not found["float64"]


HLO = """
HloModule test

%body (p: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %p = (s32[]{:T(128)}, f32[8,100]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,100]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %near = f32[8,100]{1,0:T(8,128)S(1)} negate(%x)
  %y = f32[8,100]{1,0:T(8,128)} negate(%near)
  ROOT %t = (s32[]{:T(128)}, f32[8,100]{1,0:T(8,128)}) tuple(%i, %y)
}

%condition (p: (s32[], f32[8,100])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,100]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(5)
  ROOT %c = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%updates (p: f32[80,100], q: bf16[80,100], x: f32[8,100], n: s32[]) -> (f32[80,100], bf16[80,100]) {
  %p = f32[80,100]{1,0:T(8,128)} parameter(0)
  %q = bf16[80,100]{1,0:T(8,128)} parameter(1)
  %x = f32[8,100]{1,0:T(8,128)} parameter(2)
  %n = s32[]{:T(128)} parameter(3)
  %one = f32[80,100]{1,0:T(8,128)} dynamic-update-slice(%p, %x, %n, %n)
  %two = bf16[80,100]{1,0:T(8,128)} dynamic-update-slice(%q, %x, %n, %n)
  ROOT %t = (f32[80,100]{1,0:T(8,128)}, bf16[80,100]{1,0:T(8,128)}) tuple(%one, %two)
}

ENTRY %main (a: f32[8,100], p: f32[80,100], q: bf16[80,100]) -> f32[2,100] {
  %p = f32[80,100]{1,0:T(8,128)} parameter(1)
  %q = bf16[80,100]{1,0:T(8,128)} parameter(2)
  %a = f32[8,100]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %t = (s32[]{:T(128)}, f32[8,100]{1,0:T(8,128)}) tuple(%zero, %a)
  %w = (s32[]{:T(128)}, f32[8,100]{1,0:T(8,128)}) while(%t), condition=%condition, body=%body
  %b = f32[8,100]{1,0:T(8,128)} get-tuple-element(%w), index=1
  %at = s32[]{:T(128)S(6)} constant(0)
  %both = (f32[80,100]{1,0:T(8,128)}, bf16[80,100]{1,0:T(8,128)}) fusion(%p, %q, %b, %at), kind=kLoop, calls=%updates
  ROOT %s = f32[2,100]{1,0:T(2,128)} slice(%b), slice={[0:2], [0:100]}
}
"""


def test_bytes_of_results():
    assert traffic.bytes_of_results(HLO, "negate") == 2 * 8 * 128 * 4


def test_traffic_of_a_program():
    """Five turns that read and write 8 x 128, one read that is written in float32 and in bfloat16, and a slice of two rows."""
    tile = 8 * 128 * 4
    assert traffic.hbm_bytes(HLO) == 5 * 2 * tile + (tile + tile + tile // 2) + 2 * tile // 4
