"""What happens to a batch on the device, inside the step: normalising, label smoothing, mixup, cutmix, random erasing.

Definitions are timm's (`mixup.py` in its batch mode, `random_erasing.py` in its pixel mode, one box), and so is the order: its
prefetcher, which is the default, erases batches already mixed and normalised. All randomness comes from the step's key, and
does not depend on how the batch is sharded. Images are mixed with their neighbour in the batch, whose order is random anyway, so
that mixing needs no communication where every device has an even number of images.

Letters: B batch, H W image, C channels, L classes.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from natjax_train.augment.settings import DeviceSettings

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8

_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
_ATTEMPTS = 10


def prepare(
    key: jax.Array, batch: dict[str, jax.Array], settings: DeviceSettings, num_classes: int
) -> tuple[Float[Array, "B H W C"], Float[Array, "B L"]]:
    """Returns the pixel values and soft targets that a training step sees.

    Args:
        key: the step's.
        batch: {"image": uint8 [B, H, W, C], "label": int32 [B]}.
        settings: what to do.
        num_classes: L.
    """
    affine_key, mix_key, erase_key = jax.random.split(key, 3)
    images = normalize(batch["image"], settings.image_mean, settings.image_std)
    if settings.affine:
        background = normalize(
            jnp.zeros((1, 1, 1, images.shape[-1]), jnp.uint8), settings.image_mean, settings.image_std
        )
        images = affine(affine_key, images, settings.affine, background)
    targets = smooth(batch["label"], num_classes, settings.label_smoothing)
    if settings.mixup_prob and (settings.mixup or settings.cutmix):
        images, targets = mix(mix_key, images, targets, settings)
    if settings.erasing:
        images = erase(erase_key, images, settings.erasing)
    return images, targets


def normalize(
    images: UInt8[Array, "B H W C"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "B H W C"]:
    """Returns (images / 255 - mean) / std in float32."""
    return (images.astype(jnp.float32) / 255 - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)


def normalize_within(
    images: UInt8[Array, "B H W C"], sizes: Int[Array, "B 2"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "B H W C"]:
    """Returns the same, with zeros in what lies below and right of the images' sizes, (height, width)."""
    rows, columns = (jnp.arange(side) < sizes[:, axis, None] for axis, side in enumerate(images.shape[1:3]))
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], normalize(images, mean, std), 0)


normalized = functools.partial(jax.jit, static_argnames=("mean", "std"))(normalize)


def smooth(labels: Int[Array, "B"], num_classes: int, smoothing: float) -> Float[Array, "B L"]:
    """Returns one-hot targets of which `smoothing` is spread over all classes."""
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def mix(
    key: jax.Array, images: Float[Array, "B H W C"], targets: Float[Array, "B L"], settings: DeviceSettings
) -> tuple[Float[Array, "B H W C"], Float[Array, "B L"]]:
    """Mixes every image and target with its neighbour's, all in one way: mixup, cutmix or not at all.

    The shares are drawn from Beta(a, a), with a of `settings.mixup` or `settings.cutmix`.
    """
    height, width = images.shape[1:3]
    happens, which, share, place = jax.random.split(key, 4)
    happens = jax.random.uniform(happens) < settings.mixup_prob
    cuts = jnp.array(settings.cutmix > 0)
    if settings.mixup and settings.cutmix:
        cuts = jax.random.uniform(which) < settings.mixup_switch_prob
    alpha = jnp.where(cuts, settings.cutmix or 1.0, settings.mixup or 1.0)
    share = jnp.where(happens, jax.random.beta(share, alpha, alpha), 1.0)  # of an image itself

    sides = jnp.array([height, width], jnp.float32)
    centre = jnp.floor(jax.random.uniform(place, (2,)) * sides)
    half = jnp.floor(jnp.floor(sides * jnp.sqrt(1 - share)) / 2)
    low, high = jnp.clip(centre - half, 0, sides), jnp.clip(centre + half, 0, sides)
    inside = _box(height, low[:1], high[:1])[:, None] & _box(width, low[1:], high[1:])[None, :]
    kept = 1 - jnp.prod(high - low) / (height * width)  # what the border leaves of the box

    share_of_pixels = jnp.where(cuts, 1 - inside, share)[:, :, None]  # [H, W, 1]
    share = jnp.where(cuts, kept, share)
    images = images * share_of_pixels + _neighbours(images) * (1 - share_of_pixels)
    return images, targets * share + _neighbours(targets) * (1 - share)


def erase(key: jax.Array, images: Float[Array, "B H W C"], probability: float) -> Float[Array, "B H W C"]:
    """Replaces a box of normalised images by normal noise, in a share of them: 2 to 33 % of the area, aspect 0.3 to 3.3."""
    batch, height, width, _ = images.shape
    happens, area, aspect, place, noise = jax.random.split(key, 5)
    tries = (batch, _ATTEMPTS)
    area = jax.random.uniform(area, tries, minval=_ERASED_AREA[0], maxval=_ERASED_AREA[1]) * (height * width)
    low, high = map(math.log, _ERASED_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect, tries, minval=low, maxval=high))
    rows, columns = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (rows < height) & (columns < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    rows, columns = (jnp.take_along_axis(x, first, axis=1) for x in (rows, columns))  # [B, 1]
    place = jax.random.uniform(place, (batch, 2))
    top = jnp.floor(place[:, :1] * (height - rows + 1))
    left = jnp.floor(place[:, 1:] * (width - columns + 1))
    erased = jnp.any(fits, axis=1, keepdims=True) & (jax.random.uniform(happens, (batch, 1)) < probability)
    inside = _box(height, top, top + rows)[:, :, None] & _box(width, left, left + columns)[:, None, :]
    inside &= erased[:, :, None]
    return jnp.where(inside[..., None], jax.random.normal(noise, images.shape), images)


def affine(
    key: jax.Array, images: Float[Array, "B H W C"], strength: float, background: Float[Array, "1 1 1 C"]
) -> Float[Array, "B H W C"]:
    """Rotates (up to 0.2 rad), shears (0.1), scales (0.1) and shifts (6 %) every square image a little, times `strength`."""
    batch, size = images.shape[:2]
    angle, shear, scale, shift = jax.random.split(key, 4)

    def within(key, limit, *shape):
        return strength * jax.random.uniform(key, (batch, *shape), minval=-limit, maxval=limit)

    angle, shear, scale, shift = within(angle, 0.2), within(shear, 0.1), 1 + within(scale, 0.1), within(shift, 0.06, 2)
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle) + shear]]) / scale
    centred = jnp.stack(jnp.mgrid[:size, :size]) - (size - 1) / 2
    source = jnp.einsum("ijb,jyx->biyx", rotation, centred) + (size - 1) / 2 + size * shift[:, :, None, None]

    def sample(channel, at):
        return jax.scipy.ndimage.map_coordinates(channel, list(at), order=1, cval=0.0)

    per_image = jax.vmap(sample, in_axes=(-1, None), out_axes=-1)
    return jax.vmap(per_image)(images - background, source) + background


def _box(length: int, low: jax.Array, high: jax.Array) -> jax.Array:
    """Returns which positions of an axis are in [low, high), [..., length] for bounds [..., 1]."""
    position = jnp.arange(length)
    return (low <= position) & (position < high)


def _neighbours(x: jax.Array) -> jax.Array:
    """Swaps even and odd entries of a batch; an odd batch is reversed."""
    if len(x) % 2:
        return x[::-1]
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
