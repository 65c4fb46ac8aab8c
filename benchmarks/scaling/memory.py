"""Memory of a device where an image is split over 1 to 8: prints a table, writes results/scaling_memory.json; half an hour.

NAT-Tiny in float32 on images of 1024 to 8192 pixels, inference and the gradients of a training step, as XLA's CPU compiler
plans it: programs are compiled for eight pretended devices and never run, so no machine needs the memory.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.harness import RESULTS, read, write
from benchmarks.provenance import provenance
from benchmarks.scaling.__main__ import PASSES, markdown
from natjax.models import NatForImageClassification
from natjax.presets import get_config

DEVICES, SIDES = (1, 2, 4, 8), (1024, 2048, 4096, 8192)
FILE = RESULTS / "scaling_memory.json"


def compiled(side: int, devices: int, *, train: bool) -> jax.stages.Compiled:
    """Returns the program of one image of so many pixels, split by its height."""
    mesh = jax.make_mesh((devices,), ("space",), devices=jax.devices()[:devices])
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "space"))
    model = nnx.eval_shape(lambda: NatForImageClassification(get_config("nat_tiny"), rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)

    def put(x: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    state = jax.tree.map(functools.partial(put, where=everywhere), state)
    pixels = put(jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32), rows)
    labels = put(jax.ShapeDtypeStruct((1,), jnp.int32), everywhere)

    def loss(state, pixels, labels):
        return nnx.merge(graphdef, state)(pixels, labels=labels).loss

    return jax.jit(jax.value_and_grad(loss) if train else loss).lower(state, pixels, labels).compile()


def measure(what: str, side: int, devices: int) -> dict[str, Any]:
    """Returns the bytes that a device needs."""
    start = time.perf_counter()
    memory = compiled(side, devices, train=PASSES[what]).memory_analysis()
    return {
        "what": what,
        "side": side,
        "devices": devices,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "seconds": round(time.perf_counter() - start, 1),
    }


def per_device(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for every pass and image: the megabytes of a device, by how many there are."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        megabytes = sum(row[f"{kind}_bytes"] for kind in ("argument", "output", "temporary")) / 1e6
        line = found.setdefault((row["what"], row["side"]), {"pass": row["what"], "image": [row["side"]] * 2})
        line[f"on {row['devices']}: MB"] = f"{megabytes:,.0f}"
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, metavar="PIXELS")
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=list(PASSES))
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    jax.config.update("jax_platforms", "cpu")
    rows = {(row["what"], row["side"], row["devices"]): row for row in read(FILE).get("rows", [])}
    for key in itertools.product(options.passes, options.sides, DEVICES):
        rows[key] = measure(*key)
        print(rows[key], flush=True)
        write(FILE, {"provenance": provenance(), "rows": [rows[key] for key in sorted(rows)]})
    print(markdown(per_device([rows[key] for key in sorted(rows)])))


if __name__ == "__main__":
    main()
