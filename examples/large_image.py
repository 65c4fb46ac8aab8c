"""Loss and gradients of an image whose rows are split over devices, beside those of one device. docs/scaling.md says more.

    JAX_NUM_CPU_DEVICES=8 python examples/large_image.py                          # on eight pretended devices of a CPU
    python examples/large_image.py --image slide.tif --model nat_mini             # on those of a machine

A model knows nothing of it: where the image lies decides. Each device has a run of rows, all have all parameters, and rows that
neighbours need travel. The height must divide by 32 times the devices; others are padded and told their size by a pixel_mask, as
`natjax classify --mesh space=8` does.
"""

import argparse
import time

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import natjax


def read(path: str | None, multiple: int) -> np.ndarray:
    """Returns an image [1, H, W, 3] whose height is a multiple, cut to it; noise where there is none."""
    image = np.random.default_rng(0).integers(0, 256, (512, 384, 3), np.uint8) if path is None else path
    pixels = natjax.NatImageProcessor(do_resize=False)(image)
    return pixels[:, : pixels.shape[1] // multiple * multiple]


def largest_difference(a, b) -> float:
    """Returns the largest difference of two trees of arrays, of the largest entry of each array."""
    differences = jax.tree.map(lambda x, y: np.abs(x - y).max() / np.abs(y).max(), jax.device_get(a), jax.device_get(b))
    return float(max(jax.tree.leaves(differences)))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Computes what the command line asks for, and returns what it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="a file (default: noise of 512 x 384 pixels)")
    parser.add_argument("--model", help="a name of `natjax list`, with random weights (default: a small NAT)")
    options = parser.parse_args(arguments)

    small = natjax.NatConfig(embed_dim=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), kernel_size=7, num_labels=10)
    config = natjax.get_config(options.model) if options.model else small
    graphdef, state = nnx.split(natjax.NatForImageClassification(config, rngs=nnx.Rngs(0)))

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradients(state, pixels, labels):
        return nnx.merge(graphdef, state)(pixels, labels=labels).loss

    mesh = jax.make_mesh((jax.device_count(),), ("space",))
    pixels, labels = read(options.image, 32 * mesh.size), np.array([1])
    split = (
        jax.device_put(state, NamedSharding(mesh, P())),
        jax.device_put(pixels, NamedSharding(mesh, P(None, "space"))),
        jax.device_put(labels, NamedSharding(mesh, P())),
    )
    results, memory, seconds = [], [], []
    for inputs in ((state, pixels, labels), split):
        program = loss_and_gradients.lower(*inputs).compile()
        results.append(jax.block_until_ready(program(*inputs)))
        memory.append(program.memory_analysis().temp_size_in_bytes)
        start = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        seconds.append(time.perf_counter() - start)
    found = {
        "loss": float(results[1][0]),
        "difference from one device": largest_difference(*results[::-1]),
        "memory of one device (MB)": memory[0] / 1e6,
        f"memory of each of {mesh.size} devices (MB)": memory[1] / 1e6,
        "seconds of one device": seconds[0],
        f"seconds of {mesh.size} devices, which share its cores if they are pretended": seconds[1],
    }
    print(f"image: {pixels.shape[1]} x {pixels.shape[2]}; rows on each device: {pixels.shape[1] // mesh.size}")
    for name, value in found.items():
        print(f"{name}: {value:.3g}")
    return found


if __name__ == "__main__":
    main()
