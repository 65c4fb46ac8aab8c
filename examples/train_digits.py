"""Trains the small NAT of `natjax demo` on scikit-learn's handwritten digits and exports what the package embeds.

    python examples/train_digits.py --out digits             # a few minutes on a CPU; needs scikit-learn and optax
    python examples/train_digits.py --out digits --export    # needs PyTorch and transformers 4.40.2 (Python 3.11)

The first command writes a Hugging Face directory and prints the accuracy on images that training never saw. The second one
turns it into natjax/demo/digits: the weights as PyTorch's `torch.save` writes them, sample images of the held-out part, and
their logits from transformers' own NAT. Images are [B, 64, 64, 1]; a digit of 8x8 pixels is a map of 16x16 tokens.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import natjax

ROOT = pathlib.Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "natjax" / "demo" / "digits"

SEED = 0
EPOCHS, BATCH = 60, 64
LEARNING_RATE, WARMUP_EPOCHS, WEIGHT_DECAY = 2e-3, 5, 0.05

CONFIG = natjax.NatConfig(
    num_channels=1,
    embed_dim=16,
    depths=(2, 2, 2),
    num_heads=(1, 2, 4),
    kernel_size=5,
    drop_path_rate=0.1,
    initializer_range=0.1,  # so narrow a model learns slowly from 0.02
    id2label={i: str(i) for i in range(10)},
)
PROCESSOR = natjax.NatImageProcessor(size=64, image_mean=(0.5,), image_std=(0.5,))


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns 1437 images to train with, 360 held-out ones, [B, 8, 8] uint8, and the labels of both."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=SEED)


def prepare(images: np.ndarray) -> np.ndarray:
    """Returns pixel values, [B, 64, 64, 1], of images [B, 8, 8]."""
    return PROCESSOR([PIL.Image.fromarray(image) for image in images])


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Rotates, scales, shears and shifts every image a little; pixel values that enter at the border are background."""
    batch, size = images.shape[:2]
    angle, shear, scale, shift = jax.random.split(key, 4)
    angle = jax.random.uniform(angle, (batch,), minval=-0.2, maxval=0.2)
    shear = jax.random.uniform(shear, (batch,), minval=-0.1, maxval=0.1)
    scale = jax.random.uniform(scale, (batch,), minval=0.9, maxval=1.1)
    shift = jax.random.uniform(shift, (batch, 2), minval=-0.06, maxval=0.06) * size
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle) + shear]]) / scale
    centred = jnp.stack(jnp.mgrid[:size, :size]) - (size - 1) / 2
    source = jnp.einsum("ijb,jyx->biyx", rotation, centred) + (size - 1) / 2 + shift[:, :, None, None]

    def sample(image, at):
        return jax.scipy.ndimage.map_coordinates(image, list(at), order=1, cval=-1.0)

    return jax.vmap(sample)(images[..., 0], source)[..., None]


def train() -> natjax.NatForImageClassification:
    """Trains from scratch, with a line of progress per epoch."""
    images, _, labels, _ = split()
    images, labels = jnp.asarray(prepare(images)), jnp.asarray(labels)
    steps_per_epoch = len(images) // BATCH
    steps = EPOCHS * steps_per_epoch

    model = natjax.NatForImageClassification(CONFIG, rngs=nnx.Rngs(SEED))
    graphdef, state = nnx.split(nnx.view(model, deterministic=False))
    params = nnx.to_pure_dict(state)
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, WARMUP_EPOCHS * steps_per_epoch, steps)
    decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=WEIGHT_DECAY, mask=decayed)
    )
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, opt_state, indices, key):
        augmentation, dropout = jax.random.split(key)
        batch = augment(augmentation, images[indices])

        def loss_fn(params):
            outputs = nnx.merge(graphdef, params)(batch, labels[indices], rngs=dropout)
            return outputs.loss, jnp.mean(jnp.argmax(outputs.logits, -1) == labels[indices])

        (loss, accuracy), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, accuracy

    order, key, start = np.random.default_rng(SEED), jax.random.key(SEED), time.perf_counter()
    for epoch in range(EPOCHS):
        metrics = []
        for batch in order.permutation(len(images))[: steps_per_epoch * BATCH].reshape(-1, BATCH):
            key, step_key = jax.random.split(key)
            params, opt_state, *step_metrics = train_step(params, opt_state, batch, step_key)
            metrics.append(step_metrics)
        loss, accuracy = np.mean(jax.device_get(metrics), axis=0)
        done, seconds = (epoch + 1) * steps_per_epoch, time.perf_counter() - start
        print(
            f"step {done:5d}/{steps}  loss {loss:.4f}  accuracy {accuracy:6.2%}  "
            f"{done * BATCH / seconds:6.0f} images/s  {seconds / done * (steps - done):4.0f} s left",
            flush=True,
        )
    nnx.replace_by_pure_dict(state, params)
    nnx.update(model, state)
    return model


def evaluate(model: natjax.NatForImageClassification) -> str:
    """Returns the accuracy on the held-out images as text."""
    _, images, _, labels = split()
    right = int(np.sum(np.argmax(model(prepare(images)).logits, -1) == labels))
    return f"{right} of {len(labels)} held-out images right: {right / len(labels):.2%}"


def export(trained: pathlib.Path) -> None:
    """Writes natjax/demo/digits from a trained model, with PyTorch and transformers alone."""
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    import natten_oracle

    natten_oracle.install()
    import transformers

    EMBEDDED.mkdir(exist_ok=True)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(trained / name, EMBEDDED / name)
    model = transformers.NatForImageClassification.from_pretrained(trained).eval()
    torch.save(model.state_dict(), EMBEDDED / "pytorch_model.bin")

    _, images, _, labels = split()
    chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]  # the first one of every digit
    pixel_values = torch.tensor(prepare(images[chosen]).transpose(0, 3, 1, 2))
    with torch.no_grad():
        logits = model(pixel_values).logits
    samples = []
    for index, row in zip(chosen, logits, strict=True):
        name = f"digit_{labels[index]}.png"
        PIL.Image.fromarray(images[index]).save(EMBEDDED / name, optimize=True)
        samples.append({"image": name, "label": str(labels[index]), "logits": row.tolist()})
    reference = {"model": f"transformers {transformers.__version__}, torch {torch.__version__}", "samples": samples}
    (EMBEDDED / "reference.json").write_text(json.dumps(reference, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Trains, or exports what was trained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default="digits", help="folder of the trained model")
    parser.add_argument("--export", action="store_true", help="export a trained model to natjax/demo/digits")
    arguments = parser.parse_args()
    if arguments.export:
        export(arguments.out)
        return
    start = time.perf_counter()
    model = train()
    model.save_pretrained(arguments.out, processor=PROCESSOR)
    print(f"{evaluate(model)}; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
