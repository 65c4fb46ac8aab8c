"""What happens to images on the device, inside the step: normalisation, small affine maps, random erasing, mixup and cutmix.

The definitions are those of timm's data/mixup.py ("batch" mode) and data/random_erasing.py ("pixel" mode), in its order; the
affine maps suit small drawings such as digits. Images are [B, H, W, C] throughout. All is a pure function of the key and
does not depend on how the batch is sharded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Float, Int, Num

_ERASED_AREA = (0.02, 1 / 3)
_ERASED_LOG_ASPECT = (math.log(0.3), -math.log(0.3))
_ERASING_ATTEMPTS = 10


def prepare(
    key: jax.Array, batch: dict[str, jax.Array], settings: Any, num_classes: int
) -> tuple[Float[Array, "B H W C"], Float[Array, "B L"]]:
    """Returns a training batch's pixel values and soft targets, float32; every row of targets sums to 1.

    Args:
        key: where all randomness comes from.
        batch: "image" uint8 [B, H, W, C] and "label" int [B].
        settings: a `Recipe`, or anything with its `image_mean`, `image_std`, `affine`, `erasing`, `mixup`, `cutmix`,
            `mixup_prob`, `mixup_switch_prob` and `label_smoothing`.
        num_classes: length L of the targets.
    """
    affine_key, erasing_key, mix_key = jax.random.split(key, 3)
    images = batch["image"]
    if settings.affine:
        images = affine(affine_key, images, settings.affine)
    images = normalize(images, settings.image_mean, settings.image_std)
    if settings.erasing:
        images = erase(erasing_key, images, settings.erasing)
    targets = smooth_targets(batch["label"], num_classes, settings.label_smoothing)
    if (settings.mixup or settings.cutmix) and settings.mixup_prob:
        images, targets = mix(mix_key, images, targets, settings)
    return images, targets


def normalize(images: Num[Array, "B H W C"], mean: Sequence[float], std: Sequence[float]) -> Float[Array, "B H W C"]:
    """Returns float32 pixel values of images of 0..255; mean and std are of pixels 0..1, one per channel."""
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def smooth_targets(labels: Int[Array, "B"], num_classes: int, smoothing: float) -> Float[Array, "B L"]:
    """Returns one-hot targets of which a part, the smoothing, is spread over all classes."""
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def affine(key: jax.Array, images: Num[Array, "B H W C"], strength: float) -> Float[Array, "B H W C"]:
    """Rotates, shears, scales and shifts every image a little; what enters at the border is black.

    At strength 1: rotations of up to 0.2 radians, shears of 0.1, scales of 10 % and shifts of 6 % of the side.
    """
    batch, height, width = images.shape[:3]
    angle, shear, scale, shift = jax.random.split(key, 4)
    angle = jax.random.uniform(angle, (batch,), minval=-0.2, maxval=0.2) * strength
    shear = jax.random.uniform(shear, (batch,), minval=-0.1, maxval=0.1) * strength
    scale = 1 + jax.random.uniform(scale, (batch,), minval=-0.1, maxval=0.1) * strength
    side = jnp.array([height, width])
    shift = jax.random.uniform(shift, (batch, 2), minval=-0.06, maxval=0.06) * strength * side
    matrix = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle) + shear]]) / scale
    centre = (side - 1) / 2
    centred = jnp.stack(jnp.mgrid[:height, :width]) - centre[:, None, None]
    source = jnp.einsum("ijb,jyx->biyx", matrix, centred) + (centre + shift)[:, :, None, None]

    def sample(plane: jax.Array, at: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(plane, list(at), order=1, cval=0.0)

    return jax.vmap(jax.vmap(sample, in_axes=(-1, None), out_axes=-1))(images.astype(jnp.float32), source)


def erase(key: jax.Array, images: Float[Array, "B H W C"], probability: float) -> Float[Array, "B H W C"]:
    """Fills one rectangle of an image with normal noise, with a probability per image.

    The rectangle covers 2 % to a third of the image at aspect ratios of 0.3 to 1/0.3. As in timm, the first of ten that is
    smaller than the image in both directions is taken; where none is, the image stays.
    """
    batch, height, width = images.shape[:3]
    chosen, area, aspect, top, left, noise = jax.random.split(key, 6)
    tries = (batch, _ERASING_ATTEMPTS)
    area = jax.random.uniform(area, tries, minval=_ERASED_AREA[0], maxval=_ERASED_AREA[1]) * (height * width)
    low, high = _ERASED_LOG_ASPECT
    aspect = jnp.exp(jax.random.uniform(aspect, tries, minval=low, maxval=high))
    heights, widths = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    h, w = (jnp.take_along_axis(sizes, first, axis=1)[:, 0] for sizes in (heights, widths))
    y = jnp.floor(jax.random.uniform(top, (batch,)) * (height - h + 1))
    x = jnp.floor(jax.random.uniform(left, (batch,)) * (width - w + 1))
    hit = fits.any(axis=1) & (jax.random.uniform(chosen, (batch,)) < probability)
    inside = _inside(height, y, y + h)[:, :, None] & _inside(width, x, x + w)[:, None, :] & hit[:, None, None]
    return jnp.where(inside[..., None], jax.random.normal(noise, images.shape), images)


def mix(
    key: jax.Array, images: Float[Array, "B H W C"], targets: Float[Array, "B L"], settings: Any
) -> tuple[Float[Array, "B H W C"], Float[Array, "B L"]]:
    """Mixes image i with image B - 1 - i, and their targets: all by mixup, all by cutmix or none, with one weight for all.

    Args:
        key: where all randomness comes from.
        images: pixel values.
        targets: soft targets.
        settings: with `mixup` and `cutmix` (parameters of the weights' Beta distributions, 0 is off), `mixup_prob` (that
            anything is mixed) and `mixup_switch_prob` (of cutmix, where both are on).
    """
    height, width = images.shape[1:3]
    use, switch, mixup_key, cutmix_key, y, x = jax.random.split(key, 6)
    used = jax.random.uniform(use) < settings.mixup_prob
    if settings.mixup and settings.cutmix:
        cut = jax.random.uniform(switch) < settings.mixup_switch_prob
    else:
        cut = jnp.asarray(bool(settings.cutmix))
    kept = jnp.where(cut, _weight(cutmix_key, settings.cutmix), _weight(mixup_key, settings.mixup))
    kept = jnp.where(used, kept, 1.0)

    half = jnp.floor(jnp.array([height, width]) * jnp.sqrt(1 - kept)) // 2
    y, x = jax.random.randint(y, (), 0, height), jax.random.randint(x, (), 0, width)
    box = _inside(height, y - half[0], y + half[0])[:, None] & _inside(width, x - half[1], x + half[1])
    kept = jnp.where(cut, 1 - box.mean(), kept)  # a box at the border takes less than was drawn
    weights = jnp.where(cut, 1 - box, kept)[:, :, None]
    return images * weights + images[::-1] * (1 - weights), targets * kept + targets[::-1] * (1 - kept)


def _weight(key: jax.Array, alpha: float) -> Float[Array, ""]:
    return jax.random.beta(key, alpha, alpha) if alpha else jnp.ones(())


def _inside(size: int, start: jax.Array, stop: jax.Array) -> jax.Array:
    """Returns which of `size` places lie in [start, stop), [..., size]."""
    places = jnp.arange(size)
    return (places >= start[..., None]) & (places < stop[..., None])
