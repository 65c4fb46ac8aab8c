"""Image classification: cross entropy with soft targets; top-1, top-5 and the confusion matrix. Top-1 is the score.

Letters: B batch, H W image, C channels, L classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from natjax import run_files
from natjax.configuration import NatConfig, VitRpbConfig
from natjax.models import NatForImageClassification
from natjax_train import plots, start
from natjax_train.augment import device
from natjax_train.recipe import Recipe
from natjax_train.tasks.base import Task

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What an evaluation found.

    Attributes:
        loss: mean cross entropy.
        top1: part of the images whose class has the highest logit; of equal ones the first counts.
        top5: part whose class is among the five highest, or among all where there are fewer; said where `has_top5`.
        images_per_second: without the first batch, which is compiled for, where there are more.
        confusion: images by class (rows) and predicted class (columns), int64 [L, L].
    """

    loss: float
    top1: float
    top5: float
    images_per_second: float
    confusion: Int[np.ndarray, "L L"]

    @property
    def score(self) -> float:
        """Top-1."""
        return self.top1

    @property
    def has_top5(self) -> bool:
        """Whether top-5 says something: of five classes or fewer it is always 1."""
        return len(self.confusion) > 5

    def row(self) -> dict[str, float]:
        """Returns the numbers for metrics.jsonl."""
        return {"val_loss": self.loss, "top1": self.top1} | ({"top5": self.top5} if self.has_top5 else {})

    def text(self) -> str:
        """Returns the numbers for people."""
        scores = [f"{name} {value:.2%}" for name, value in self.accuracies().items()]
        return "  ".join(
            (
                *scores,
                f"loss {self.loss:.4f}",
                f"of {self.confusion.sum()} images",
                f"{self.images_per_second:.0f} images/s",
            )
        )

    def accuracies(self) -> dict[str, float]:
        """Returns top-1, and top-5 where there are more than five classes, for people."""
        return {"top-1": self.top1} | ({"top-5": self.top5} if self.has_top5 else {})

    def headline(self) -> str:
        """Returns the score for people."""
        return f"top-1 {self.top1:.2%}"

    def per_class(self) -> list[tuple[int, float, float]]:
        """Returns, per class: images, recall (part of them that was found), precision (part of what was taken for it).

        NaN where there is nothing to divide by.
        """
        right, images, taken = np.diag(self.confusion), self.confusion.sum(1), self.confusion.sum(0)
        with np.errstate(invalid="ignore"):
            return list(zip(images.tolist(), (right / images).tolist(), (right / taken).tolist(), strict=True))


class Classification(Task):
    """The task of one run.

    Args:
        recipe: the run's; None where a model is only evaluated.
        class_names: L of them, in the order of the labels.
    """

    curves: tuple[str, Mapping[str, str]] = ("Accuracy on the validation images", {"top1": "top-1", "top5": "top-5"})

    def initial_model(self) -> NatForImageClassification:
        """Returns the recipe's model for these classes. A checkpoint keeps its classifier where its classes are the same.

        Raises:
            CheckpointError: there is no such checkpoint.
            ValueError: the recipe's fields do not fit the model.
        """
        recipe = self.recipe
        options: dict[str, Any] = {"dtype": _dtype(recipe), "rngs": nnx.Rngs(recipe.seed)}
        checkpoint, labels = start.open_checkpoint(recipe), {"id2label": dict(enumerate(self._class_names))}
        config = start.architecture(recipe, checkpoint)
        changes = _changes(recipe, config)
        if checkpoint is None:
            model = NatForImageClassification(config.replace(**changes, **labels), **options)
        else:
            if not start.keeps_head(checkpoint, labels["id2label"]):
                changes, options = changes | labels, options | {"replace_head": True}
            model = NatForImageClassification.from_pretrained(checkpoint, **changes, **options, resize_biases=True)
        start.check_channels(recipe, model.config.num_channels)
        return model

    def resumed_model(self, config: NatConfig) -> NatForImageClassification:
        """Returns the model of a resumed run, without weights: those are in its checkpoints.

        Raises:
            ValueError: the data have other classes than the run.
        """
        self.check_classes(config)
        recipe = self.recipe
        config = config.replace(**_changes(recipe, config))
        return nnx.eval_shape(lambda: NatForImageClassification(config, dtype=_dtype(recipe), rngs=nnx.Rngs(0)))

    def prepare(
        self, key: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B L"]]:
        """Returns the pixel values and soft targets that a training step sees, see `augment.device.prepare`."""
        return device.prepare(key, batch, self.recipe, len(self._class_names))

    def training_loss(
        self, model: Any, pixel_values: Float[Array, "B H W C"], targets: Float[Array, "B L"], rngs: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the mean cross entropy, which has no parts."""
        log_probabilities = jax.nn.log_softmax(model(pixel_values, rngs=rngs).logits.astype(jnp.float32))
        return -jnp.mean(jnp.sum(targets * log_probabilities, axis=-1)), {}

    def predict(self, model: Any, inputs: Float[Array, "B H W C"]) -> Float[Array, "B L"]:
        """Returns the logits in float32."""
        return model(inputs).logits.astype(jnp.float32)

    def judge(self, predictions: Float[Array, "B L"], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns label, prediction, rank of the right class and loss of every image.

        Raises:
            ValueError: the model has another number of classes.
        """
        if predictions.shape[-1] != len(self._class_names):
            raise ValueError(f"The model has {predictions.shape[-1]} classes, the data {len(self._class_names)}.")
        return _judge(predictions, batch["label"], batch["mask"])

    def result(self, judged: dict[str, np.ndarray], images_per_second: float, source: Any) -> Metrics:
        """Returns the metrics of all images."""
        rank, loss = judged["rank"], judged["loss"]
        confusion = np.zeros((len(self._class_names),) * 2, np.int64)
        np.add.at(confusion, (judged["label"], judged["predicted"]), 1)
        return Metrics(
            loss=float(loss.mean(dtype=np.float64)),
            top1=float(np.mean(rank < 1)),
            top5=float(np.mean(rank < 5)),
            images_per_second=images_per_second,
            confusion=confusion,
        )

    def plot(self, result: Metrics, directory: Path) -> None:
        """Draws the confusion matrix."""
        plots.confusion(result.confusion, self._class_names, directory / run_files.CONFUSION)


def _dtype(recipe: Recipe) -> Any:
    return jnp.bfloat16 if recipe.dtype == "bfloat16" else None


def _changes(recipe: Recipe, config: NatConfig) -> dict[str, Any]:
    """Returns the fields of the model's config that the recipe decides; that of a ViT-rpb follows the size of its images."""
    size = {"image_size": recipe.image_size} if isinstance(config, VitRpbConfig) else {}
    drop_path = {} if recipe.drop_path_rate is None else {"drop_path_rate": recipe.drop_path_rate}
    return size | dict(recipe.model_config) | drop_path


@jax.jit
def _judge(
    logits: Float[Array, "B L"], label: Int[Array, "B"], mask: Bool[Array, "B"]
) -> dict[str, Float[Array, "B"] | Int[Array, "B"] | Bool[Array, "B"]]:
    logits = logits.astype(jnp.float32)
    classes, own = jnp.arange(logits.shape[1]), label[:, None]
    logit = jnp.sum(jnp.where(classes == own, logits, 0), axis=1)  # no indexing, which would need shardings spelled out
    behind = (logits < logit[:, None]) | ((logits == logit[:, None]) & (classes > own))  # none where there are NaNs
    judged = {
        "label": label,
        "mask": mask,
        "predicted": jnp.argmax(logits, axis=1),
        "rank": logits.shape[1] - 1 - behind.sum(axis=1),
        "loss": jax.nn.logsumexp(logits, axis=1) - logit,
    }
    return reshard(judged, P())  # every process sees all images
