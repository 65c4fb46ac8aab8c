"""What XLA's compilers for GPUs and TPUs make of natjax, without one: `python tests/deviceless/deviceless.py` (minutes).

Compiles the op, NAT-Tiny's forward pass and a training step for devices that are not here and reports custom calls, collectives
and memory as JSON. Needs the packages of requirements/deviceless.txt in an environment of their own (`make test-deviceless` makes
it): JAX's CUDA plugin, which cannot start without a GPU but compiles for one that is described to it, and libtpu, which knows
its TPUs by name.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from unittest import mock

import reports

# Name, compute capability, shared memory of a multiprocessor and of a block, multiprocessors, bytes/s, L2 bytes, memory, GHz:
# from the vendor's data sheets and programming guide.
KINDS = {
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 167936, 166912, 108, 2.039e12, 41943040, 80e9, 1.41),
    "l4": ("NVIDIA L4", (8, 9), 102400, 101376, 58, 0.3e12, 50331648, 24e9, 2.04),
    "h200": ("NVIDIA H200", (9, 0), 233472, 232448, 132, 4.8e12, 62914560, 150e9, 1.98),
    "b200": ("NVIDIA B200", (10, 0), 233472, 232448, 148, 8e12, 132644864, 190e9, 1.965),
}
# Slices of TPUs, of eight devices each, by the names that libtpu has for them.
TPUS = {"v5e": "v5e:2x4", "v6e": "v6e:2x4", "v5p": "v5p:2x2x2", "7x": "tpu7x:2x2x1"}
_DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_of_block}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: {cores} clock_rate_ghz: {clock}
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: {cache} device_memory_size: {memory:.0f}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""


def devices(kind: str, count: int = 1):
    """Returns `count` devices that are not here."""
    from jax.experimental import topologies

    if kind in TPUS:
        return topologies.get_topology_desc(platform="tpu", topology_name=TPUS[kind]).devices[:count]
    name, (major, minor), shared, shared_of_block, cores, bandwidth, cache, memory, clock = KINDS[kind]
    description = _DESCRIPTION.format(
        major=major, minor=minor, shared=shared, shared_of_block=shared_of_block, cores=cores, bandwidth=bandwidth,
        cache=cache, memory=memory, clock=clock, name=name,
    )  # fmt: skip
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", topology=f"1x1x{count}", target_config=description
    ).devices


def platform(kind):
    """Returns JAX's name for a kind's platform."""
    return "tpu" if kind in TPUS else "gpu"


ONE_DEVICE = ((1,), ("data",), "Auto")


def report_for(kind, function, *shapes, mesh=ONE_DEVICE):
    """Compiles `function` of arrays of the given shapes, trees of `Array`, on a mesh (shape, names, type of its axes).

    Returns `reports.report` of the program.
    """
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding

    shape, names, axis_type = mesh
    here = devices(kind, int(np.prod(shape)))
    made = Mesh(np.array(here).reshape(shape), names, axis_types=(AxisType[axis_type],) * len(names))
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(made, x.spec)),
        shapes,
        is_leaf=lambda x: isinstance(x, Array),
    )
    # natjax.nn.xla and natjax_kernels.xla.tiling choose by JAX's default backend, which here is not what is compiled for.
    with (
        jax.default_device(here[0]),
        jax.set_mesh(made),
        mock.patch("jax.default_backend", return_value=platform(kind)),
    ):
        return reports.report(jax.jit(function).trace(*arguments).lower().compile(), platform(kind))


class Array:
    """Shape, dtype and layout on the mesh of an argument."""

    def __init__(self, shape, dtype, spec=()):
        import jax

        self.shape, self.dtype, self.spec = tuple(shape), dtype, jax.sharding.PartitionSpec(*spec)


def arrays(tree):
    """Returns the arrays of a tree of shapes, each whole on every device."""
    import jax

    return jax.tree.map(lambda x: Array(x.shape, x.dtype), tree)


def op(kind, axis_type="Auto", mesh_shape=(1,), batch=128, side=56, gradients=True, heads=2, split=None):
    """The op and all its gradients, at NAT-Tiny's first level unless another side is asked for.

    The batch is split along the first axis of the mesh, "data", and heads along the second, "model", if there is one; or axes of
    tokens as `split` says. A TPU gets heads and channels as one axis, as linear layers do: it lays out arrays by their axes.
    """
    import jax

    from natjax_kernels import neighborhood_attention

    names = ("data", "model")[: len(mesh_shape)]
    last = (32 * heads,) if kind in TPUS else (heads, 32)
    tokens = Array((batch, side, side, *last), "bfloat16", split or ("data", None, None, *names[1:]))
    rpb = Array((heads, 13, 13), "bfloat16")

    def attend(q, k, v, rpb):
        q, k, v = (x.reshape(batch, side, side, heads, 32) for x in (q, k, v))
        out = neighborhood_attention(q, k, v, rpb=rpb, kernel_size=7)
        return out.reshape(batch, side, side, *last)

    def run(q, k, v, rpb, d_out):
        out, pull = jax.vjp(attend, q, k, v, rpb)
        return out, pull(d_out) if gradients else None

    return report_for(kind, run, tokens, tokens, tokens, rpb, tokens, mesh=(mesh_shape, names, axis_type))


def layer(kind, devices=1):
    """An attention layer, of which every device has 256 rows of 256 tokens."""
    import jax
    from flax import nnx

    import natjax

    shapes = nnx.eval_shape(
        lambda: natjax.NeighborhoodAttention(128, 4, kernel_size=7, dtype="bfloat16", rngs=nnx.Rngs(0))
    )
    graphdef, state = nnx.split(shapes)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))
    tokens = Array((1, 256 * devices, 256, 128), "bfloat16", (None, "rows"))
    mesh = (devices,), ("rows",), "Explicit"
    return report_for(kind, lambda p, x: nnx.merge(graphdef, p)(x), arrays(params), tokens, mesh=mesh)


def band(kind, **options):
    """The op, with the band design named for its forward kernel."""
    from natjax_kernels.fused.band import configurations
    from natjax_kernels.fused.configurations import Case, override
    from natjax_kernels.window import Window

    major, minor = KINDS[kind][1]
    window = Window((7, 7), (1, 1), (1, 1), (False, False))
    case = Case("fwd", (56, 56), window, 32, "bfloat16", bias=True, capability=10 * major + minor)
    with override(case, configurations(case)[0]):
        return op(kind, **options)


def _model(name, changes, **view):
    """Returns configuration, graphdef and shapes of the parameters of a model, perhaps changed, that computes in bfloat16."""
    import jax
    from flax import nnx

    import natjax

    model = nnx.eval_shape(lambda: natjax.create_model(name, dtype="bfloat16", rngs=nnx.Rngs(0), **changes))
    graphdef, state = nnx.split(nnx.view(model, **view))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))
    return model.config, graphdef, params


def forward(kind, name="nat_tiny", batch=128, side=224, mesh=ONE_DEVICE, split=(), **changes):
    """A model's logits, of images that are split along axes of the mesh; of fewer layers, say, where `changes` ask for them."""
    from flax import nnx

    _, graphdef, params = _model(name, changes)
    pixels = Array((batch, side, side, 3), "bfloat16", split)

    def run(params, pixels):
        return nnx.merge(graphdef, params)(pixels).logits

    return report_for(kind, run, arrays(params), pixels, mesh=mesh)


def step(kind, name="nat_tiny", batch=128, side=224, mesh_shape=(1, 1), **changes):
    """The training step of the model's recipe, its augmentations included; of fewer layers, say, where `changes` ask for them."""
    import jax

    from natjax_train.mesh import AXES, SPACE
    from natjax_train.recipes import RECIPES
    from natjax_train.step import make_training
    from natjax_train.tasks.classification import Classification

    config, graphdef, params = _model(name, changes, deterministic=False)
    recipe = RECIPES[name]
    task = Classification(recipe, range(config.num_labels))
    with mock.patch("jax.default_backend", return_value=platform(kind)):  # the step's compiler options are its own
        training = make_training(config, graphdef, params, task, recipe, steps_per_epoch=1000)
    state = arrays(jax.eval_shape(training.init, params))
    names = (*AXES, SPACE)[: len(mesh_shape)]
    pixels = Array((batch, side, side, 3), "uint8", [AXES, *names[len(AXES) :]])
    images = {"image": pixels, "label": Array((batch,), "int32", [AXES])}
    return report_for(kind, training.step, state, images, mesh=(mesh_shape, names, "Explicit"))


CHECKS = {
    "op": op,
    "op on 4 x 2, Auto": lambda kind: op(kind, "Auto", (4, 2)),
    "op on 4 x 2, Explicit": lambda kind: op(kind, "Explicit", (4, 2)),
    **{
        f"op on a map split by 4 x 2, {kind}": functools.partial(
            op, axis_type=kind, mesh_shape=(4, 2), batch=1, side=224, split=(None, "data", "model")
        )
        for kind in ("Auto", "Explicit")
    },
    **{f"op, batch 8, side {side}": functools.partial(op, batch=8, side=side) for side in (112, 224, 448)},
    "op on 2 x 2, rows": lambda kind: op(kind, "Explicit", (2, 2), split=("data", "model")),
    **{f"op, level {n + 1}": functools.partial(op, side=56 >> n, heads=2 << n) for n in range(4)},
    **{
        f"op, forward, level {n + 1}": functools.partial(op, side=56 >> n, heads=2 << n, gradients=False)
        for n in range(4)
    },
    "layer": layer,
    "layer on 8, rows": functools.partial(layer, devices=8),
    "band": band,
    "band, forward": functools.partial(band, gradients=False),
    "band on 4 x 2, Auto": functools.partial(band, axis_type="Auto", mesh_shape=(4, 2)),
    "band on 4 x 2, Explicit": functools.partial(band, axis_type="Explicit", mesh_shape=(4, 2)),
    "band, forward, on 4 x 2, Auto": functools.partial(band, axis_type="Auto", mesh_shape=(4, 2), gradients=False),
    "forward": forward,
    "forward of dinat_tiny": lambda kind: forward(kind, "dinat_tiny"),
    **{
        f"forward of 5 layers, batch 8, {side} pixels": functools.partial(
            forward, batch=8, side=side, depths=(1, 1, 2, 1)
        )
        for side in (224, 448, 896)
    },
    "forward on 2 x 2, rows": functools.partial(
        forward, side=256, mesh=((2, 2), ("data", "space"), "Explicit"), split=("data", "space")
    ),
    "step": step,
    "step of 5 layers": functools.partial(step, depths=(1, 1, 2, 1)),
    **{
        f"step{of_layers} on 2 x 2, rows": functools.partial(step, batch=8, side=256, mesh_shape=(2, 1, 2), **changes)
        for of_layers, changes in (("", {}), (" of 4 layers", {"depths": (1, 1, 1, 1)}))
    },
}


def check_apart(name, kind="h200", **variables):
    """Returns the report of one check, compiled in a process of its own: what is wrong for a GPU can abort the compiler.

    `variables` are of the process's environment, besides those of this one.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "XLA_FLAGS")}
    environment |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= variables
    command = [sys.executable, __file__, "--kind", kind, "--check", name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} for {kind}: the compiler failed with code {done.returncode}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=[*KINDS, *TPUS], default="h200")
    parser.add_argument("--check", choices=CHECKS, help="one check, in this process")
    args = parser.parse_args()
    if args.check:
        print(json.dumps(CHECKS[args.check](args.kind)))
        return
    for name in CHECKS:
        if args.kind in TPUS and "band" in name:  # a kernel of GPUs
            continue
        print(f"{args.kind}, {name}: {json.dumps(check_apart(name, args.kind))}", flush=True)


if __name__ == "__main__":
    main()
