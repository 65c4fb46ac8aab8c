"""Semantic segmentation with UPerNet: cross entropy of both heads; IoU of every class, whose mean is the score, pixel accuracy.

Logits are resized as mmsegmentation does: bilinearly to the size of the input and from there to the size of the mask. Both are
one matrix per axis, so that masks of all sizes share a program, and a few rows are settled at a time.

Letters: B batch, H W image, Y X mask, h w logits, C channels, L classes, T side of an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from natjax import run_files
from natjax.configuration import CONFIG_NAME, UperNetConfig, read_config
from natjax.image_processing import NatImageProcessor
from natjax.losses import segmentation_loss
from natjax.models import UperNetForSemanticSegmentation
from natjax.segmentation.palettes import palette_of
from natjax_kernels.sharding import over_batch
from natjax_train import start
from natjax_train.augment.device import normalize_within
from natjax_train.data import Batches, Source, check_splits, train_loader
from natjax_train.data.mask_batches import mask_eval_loader, mask_processor, masked_image
from natjax_train.data.masks import IGNORED, class_names, has_split, open_masks
from natjax_train.data.split import split_images
from natjax_train.examples import draw_segmentations
from natjax_train.mesh import BATCH
from natjax_train.model_card import Card
from natjax_train.recipe import Recipe
from natjax_train.tasks.dense import DenseTask
from natjax_train.tasks.iou import Metrics

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

_CHUNK = 2**23  # logits of a chunk of rows: 32 MiB
_EXAMPLE_SIDE = 240  # pixels
OUTSIDE = 254  # in examples: no pixel of the image


class Segmentation(DenseTask):
    """The task of one run.

    Args:
        recipe: the run's; None where a model is only evaluated.
        class_names: L of them, in the order of their numbers in masks.
        size_divisor: of evaluation, see `prepared_size`; by default the recipe's.
        palette: colours [L, 3] for a model that learns these classes anew; None for those of `natjax.segmentation.palette_for`.
    """

    curves: tuple[str, Mapping[str, str]] = (
        "Validation images",
        {"miou": "mean IoU", "pixel_accuracy": "pixel accuracy"},
    )
    kind = "segmentation"
    targets_are_maps = True
    image_size = 512
    crop = True

    def __init__(
        self,
        recipe: Recipe | None,
        class_names: Sequence[str | int],
        size_divisor: int | None = None,
        palette: np.ndarray | None = None,
    ):
        super().__init__(recipe, class_names)
        self._divisor = size_divisor or (recipe.size_divisor if recipe else 1)
        self._colours = {} if palette is None else {"palette": palette.tolist()}

    @classmethod
    def of(cls, recipe: Recipe, training: Any) -> Self:
        """Returns the task of a run with these training images, whose masks may have a palette."""
        return cls(recipe, training.class_names, palette=training.palette)

    @classmethod
    def open_splits(cls, recipe: Recipe, data: str, report: Callable[[str], None]) -> tuple[Source, Source]:
        """Opens images and masks of both splits and inspects all masks, see `data.masks`."""
        options: dict[str, Any] = {
            "class_names": class_names(recipe.classes),
            "reduce_zero_label": recipe.reduce_zero_label,
        }
        if recipe.val_fraction is None:
            parts = [open_masks(data, split, **options) for split in ("train", "val")]
        else:
            if has_split(data, "val"):
                raise ValueError(f"{data} has val/ in it: leave val_fraction out, which splits data without.")
            parts = list(split_images(open_masks(data, "", **options), recipe.val_fraction, recipe.seed).values())
        for part in parts:
            part.inspect(report)
        return parts[0], parts[1]

    @classmethod
    def check(cls, training: Source, validation: Source) -> None:
        """Checks that validation images are others than the training images; a class without pixels is only remarked on."""
        check_splits(training, validation)

    def card(self) -> Card:
        """Returns what a model card says of the task."""
        return Card("image-segmentation", "segmenter", "UperNetForSemanticSegmentation", "masks")

    def train_loader(self, source: Source, *, height_divisor: int, **options: Any) -> Batches:
        """Returns an endless run's batches, see `masked_image`."""
        return train_loader(source, prepare=masked_image, **options)

    def eval_loader(self, source: Any, **options: Any) -> Batches:
        """Returns the batches of one pass over a source, by size of the images."""
        return mask_eval_loader(source, divisor=self._divisor, **options)

    def processor(self, recipe: Recipe, image_size: int) -> NatImageProcessor:
        """Returns how evaluation prepares images."""
        return mask_processor(recipe, image_size, image_mean=recipe.image_mean, image_std=recipe.image_std)

    def model_class(self, config: Any) -> type[UperNetForSemanticSegmentation]:
        """Returns the class of the run's model."""
        return UperNetForSemanticSegmentation

    def labels(self, config: Any) -> dict[str, Any]:
        """Returns names and, where the masks have them, colours of the data's classes."""
        labels = super().labels(config)
        if self._colours:  # without, those of other classes are left behind, see UperNetConfig.replace
            labels["extra"] = (dict(config.extra) if isinstance(config, UperNetConfig) else {}) | self._colours
        return labels

    def check_model(self, config: UperNetConfig) -> None:
        """Checks that batch normalisation has a batch where maps are pooled to one pixel.

        Raises:
            ValueError: it has one image, or the recipe's images have not the model's channels.
        """
        super().check_model(config)
        recipe = self.recipe
        if recipe.batch_size == recipe.accumulate and 1 in config.pool_scales:
            raise ValueError(
                f"Batch normalisation needs two images at once, and batch_size {recipe.batch_size} in {recipe.accumulate} "
                f"micro-batches (accumulate) has one: give --batch-size {2 * recipe.accumulate} or more."
            )

    def prepare(
        self, key: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[Float[Array, "B H W C"], Int[Array, "B H W"]]:
        """Returns the pixel values and class numbers that a training step sees; what fills up a crop is 0 and 255."""
        _, mean, std = start.resolved(self.recipe)
        pixel_values = normalize_within(batch["image"], batch["size"], mean, std)
        return pixel_values, batch["label"].astype(jnp.int32)

    def training_loss(
        self, model: Any, pixel_values: Float[Array, "B H W C"], targets: Int[Array, "B H W"], rngs: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the mean cross entropy of both heads, the second one weighted; its parts are not told."""
        logits, auxiliary = model.decode(pixel_values, rngs=rngs)
        average: Any = self.recipe.loss_average
        loss = segmentation_loss(logits, targets, ignore_index=IGNORED, average=average)
        if auxiliary is not None:
            weight = model.config.auxiliary_loss_weight
            loss += weight * segmentation_loss(auxiliary, targets, ignore_index=IGNORED, average=average)
        return loss, {}

    def predict(self, model: Any, inputs: Float[Array, "B H W C"]) -> Float[Array, "B h w L"]:
        """Returns the decode head's logits in float32, before any resizing."""
        return model.decode(inputs)[0].astype(jnp.float32)

    def judge(self, predictions: Float[Array, "B h w L"], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns pixels per class that agree, are predicted and are true, loss and pixels that count of every image.

        Raises:
            ValueError: the model has another number of classes.
        """
        if predictions.shape[-1] != len(self._class_names):
            raise ValueError(f"The model has {predictions.shape[-1]} classes, the data {len(self._class_names)}.")
        arrays = {name: reshard(batch[name], BATCH) for name in ("image", "label", "size", "mask")}
        return _judge(reshard(predictions, BATCH), arrays)

    def result(self, judged: dict[str, np.ndarray], images_per_second: float, source: Any) -> Metrics:
        """Returns the metrics of all images."""
        counts = judged["counts"].sum(0, dtype=np.int64)
        pixels = max(int(counts[2].sum()), 1)
        return Metrics(
            counts=counts,
            loss=float(judged["loss"].sum(dtype=np.float64) / pixels),
            images=len(judged["counts"]),
            images_per_second=images_per_second,
            examples={name.partition("/")[2]: value for name, value in judged.items() if "/" in name},
        )

    def plot(self, result: Metrics, directory: Path) -> None:
        """Draws a few images with their masks, what the model makes of them and where it errs, in the model's own colours."""
        palette: Any = palette_of(read_config(directory / CONFIG_NAME))
        draw_segmentations(result.examples, self._class_names, palette, directory / run_files.EXAMPLES)


@jax.jit
def _judge(logits: Float[Array, "B h w L"], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def images_of_a_device(logits: Any, batch: Any) -> Any:
        return jax.lax.map(lambda one: _judge_image(*one), (logits, batch))

    judged = over_batch(images_of_a_device, (logits, batch))
    return jax.tree.map(lambda x: reshard(x, P()), judged)  # every process sees all images


def _judge_image(logits: Float[Array, "h w L"], one: dict[str, jax.Array]) -> dict[str, jax.Array]:
    image, label, size = one["image"], one["label"], one["size"]
    (height, width), classes = label.shape, jnp.arange(logits.shape[-1])
    rows, columns = (
        jnp.matmul(_bilinear(prepared, after, size[axis]), _bilinear(before, prepared, prepared), precision=_EXACT)
        for axis, (before, prepared, after) in enumerate(
            zip(logits.shape[:2], image.shape[:2], label.shape, strict=True)
        )
    )
    wide = jnp.einsum("xw,hwl->hxl", columns, logits, precision=_EXACT)  # [h, X, L]
    chunk = max(1, min(height, _CHUNK // (width * logits.shape[-1])))
    chunks = -(-height // chunk)
    fill = ((0, chunks * chunk - height), (0, 0))
    rows = jnp.pad(rows, fill).reshape(chunks, chunk, -1)
    labels = jnp.pad(label, fill, constant_values=IGNORED).reshape(chunks, chunk, width)

    def judge_rows(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows, label = part
        pixels = jnp.einsum("yh,hxl->yxl", rows, wide, precision=_EXACT)  # [rows, X, L]
        predicted, valid = jnp.argmax(pixels, -1), label != IGNORED
        right = jnp.sum(jnp.where(classes == label[..., None], pixels, 0), -1)
        loss = jnp.sum(jnp.where(valid, jax.nn.logsumexp(pixels, -1) - right, 0))
        of_class = (predicted[..., None] == classes) & valid[..., None], label[..., None] == classes
        found = (of_class[0] & of_class[1], *of_class)
        return jnp.stack([jnp.sum(x, (0, 1), dtype=jnp.int32) for x in found]), loss, predicted.astype(jnp.uint8)

    counts, loss, predicted = jax.lax.map(judge_rows, (rows, labels))
    places = ((jnp.arange(_EXAMPLE_SIDE) + 0.5) * (jnp.max(size) / _EXAMPLE_SIDE)).astype(int)
    inside = (places < size[0])[:, None] & (places < size[1])
    of_image = [places * image.shape[axis] // size[axis] for axis in (0, 1)]
    predicted = predicted.reshape(-1, width)
    return {
        "counts": counts.sum(0),
        "loss": loss.sum(),
        "mask": one["mask"],
        "example/image": image[jnp.ix_(*of_image)],
        "example/truth": jnp.where(inside, label[jnp.ix_(places, places)], OUTSIDE),
        "example/predicted": jnp.where(inside, predicted[jnp.ix_(places, places)], OUTSIDE),
    }


_EXACT = jax.lax.Precision.HIGHEST


def _bilinear(before: int, most: int, after: jax.Array | int) -> Float[Array, "most before"]:
    """Returns the matrix of torch's bilinear interpolation (align_corners=False) to `after` values, of `most` rows."""
    at = jnp.clip((jnp.arange(most) + 0.5) * (before / after) - 0.5, 0, before - 1)
    return jnp.maximum(0, 1 - jnp.abs(at[:, None] - jnp.arange(before)))
