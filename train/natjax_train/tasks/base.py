"""The protocol of tasks, by which alone the loop, the step, evaluation, the log and checkpoints know them.

What `Task` itself does suits images with one label each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from natjax.labels import composed
from natjax.text import first_few
from natjax_convert import shapes
from natjax_train import data as data_
from natjax_train import start
from natjax_train.augment.device import normalized
from natjax_train.model_card import Card

if TYPE_CHECKING:
    import jax
    import numpy as np

    from natjax.image_processing import NatImageProcessor
    from natjax_train.data import Batches, Source
    from natjax_train.recipe import Recipe


class Result(Protocol):
    """What an evaluation found."""

    @property
    def score(self) -> float:
        """The number by which the best checkpoint is chosen; more is better."""
        ...

    def row(self) -> dict[str, float]:
        """Returns the numbers for metrics.jsonl, `val_loss` among them where a loss was measured; none is named `lr`."""
        ...

    def text(self) -> str:
        """Returns the same for people, on one line."""
        ...

    def headline(self) -> str:
        """Returns the score for people."""
        ...


class Task(Protocol):
    """A task of one run, made of its recipe and the names of its data's classes."""

    curves: tuple[str, Mapping[str, str]]  # title of a panel of curves.png, and label by name in metrics.jsonl
    kind: Any = "classifier"  # of the task's models and checkpoints, see `natjax_convert.shapes`
    targets_are_maps: bool = False  # whether targets are [B, H, W] of the images' height, and split as images are
    fixed_height: bool = True  # False where batches are padded to heights that `space` divides
    backbone: str = "nat"  # the first key of the parameters that `freeze_backbone` freezes

    _recipe: Recipe | None
    _class_names: tuple[str, ...]

    def __init__(self, recipe: Recipe | None, class_names: Sequence[str | int]):
        self._recipe, self._class_names = recipe, tuple(map(str, class_names))

    @classmethod
    def of(cls, recipe: Recipe, training: Source) -> Self:
        """Returns the task of a run with these training images."""
        return cls(recipe, training.class_names)

    @property
    def recipe(self) -> Recipe:
        """The run's.

        Raises:
            ValueError: the task was made for evaluation alone.
        """
        if self._recipe is None:
            raise ValueError("This task has no recipe: it can only evaluate.")
        return self._recipe

    def check_classes(self, config: Any) -> None:
        """Checks that the data have the classes of a run's model.

        Raises:
            ValueError: they have others.
        """
        names, own = list((config.id2label or {}).values()), list(self._class_names)
        if list(map(composed, names)) != list(map(composed, own)):
            raise ValueError(
                f"The data's {len(own)} classes ({first_few(own)}) are not the run's {len(names)} "
                f"({first_few(names)}): resume with the same data, or choose another folder for another run."
            )

    @classmethod
    def open_splits(cls, recipe: Recipe, data: str, report: Callable[[str], None]) -> tuple[Source, Source]:
        """Opens the training and the validation images of a data set, as the recipe says.

        Raises:
            ImageError: they cannot be used.
        """
        return data_.open_splits(data, val_fraction=recipe.val_fraction, seed=recipe.seed)

    @classmethod
    def check(cls, training: Source, validation: Source) -> None:
        """Checks that a model can be trained with these images and measured on those.

        Raises:
            ImageError: it cannot.
        """
        data_.check_training(training)
        data_.check_splits(training, validation)

    @classmethod
    def resolve(cls, recipe: Recipe) -> tuple[Recipe, str]:
        """Returns a recipe with what it leaves open decided, and in words where the preprocessing is from: `start.resolve`."""
        return start.resolve(recipe)

    def card(self) -> Card:
        """Returns what a model card says of the task."""
        return Card()

    def train_loader(self, source: Source, *, height_divisor: int, **options: Any) -> Batches:
        """Returns an endless run's batches.

        Args:
            source: the training images.
            height_divisor: what pads batches without a `fixed_height`, see `mesh.height_divisor`; others are checked for it.
            options: those of `data.train_loader`.
        """
        return data_.train_loader(source, **options)

    def eval_loader(self, source: Source, **options: Any) -> Batches:
        """Returns the batches of one pass over a source; options are those of `data.eval_loader`."""
        return data_.eval_loader(source, **options)

    def processor(self, recipe: Recipe, image_size: int) -> NatImageProcessor:
        """Returns how evaluation, and whoever uses the exported model, prepares images."""
        return data_.eval_processor(recipe, image_size)

    def initial_model(self) -> Any:
        """Returns the model a run starts from."""
        ...

    def resumed_model(self, config: Any) -> Any:
        """Returns the model of a resumed run, without weights."""
        ...

    def parameters(self, config: Any) -> list[shapes.Parameter]:
        """Returns the parameters of the task's model, with the depth of each, for layer-wise decay of the learning rate."""
        return shapes.parameters(config, self.kind)

    def prepare(self, key: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        """Returns pixel values and targets of a training batch: augmentation on the device.

        Targets are an array [B, ...] or a pytree of such arrays. Within it the partitioner settles where arrays lie; what it
        returns is split by images.
        """
        ...

    def training_loss(
        self, model: Any, pixel_values: jax.Array, targets: Any, rngs: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the mean loss of a batch, float32 [], and the parts of it that metrics.jsonl is to have, by their names there.

        Args:
            model: in its training view.
            pixel_values: of `prepare`.
            targets: of `prepare`.
            rngs: a `jax.random.key`, of dropouts and of whatever is chosen at random.
        """
        ...

    def inputs(self, batch: dict[str, jax.Array], mean: Sequence[float], std: Sequence[float]) -> Any:
        """Returns what `predict` takes of an evaluation batch: an array [B, ...] or a pytree of such arrays.

        They alone decide how often the model is compiled. By default they are the normalised images.

        Args:
            batch: of `eval_loader`, on the devices.
            mean: per channel, of pixels 0..1.
            std: per channel.
        """
        return normalized(batch["image"], tuple(mean), tuple(std))

    def predict(self, model: Any, inputs: Any) -> Any:
        """Returns what `judge` looks at, an array [B, ...] or a pytree of such arrays, of a model in its evaluation view."""
        ...

    def judge(self, predictions: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns what is counted of an evaluation batch, arrays [B, ...] and its `mask`; runs on the device.

        All of them are to be on every device, so that every process sees all images. Of an array "example/..." the first few
        images' alone reach `result`, for pictures.
        """
        ...

    def kept(self, judged: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what the host keeps of a batch's judgements until `result`; the devices work at the next batch meanwhile.

        Args:
            judged: what `judge` returned, without examples and without what only fills up the batch: arrays [images, ...].

        Returns:
            Arrays with any number of rows, of objects too: those of all batches are put one after another, name by name.
        """
        return judged

    def result(self, judged: dict[str, np.ndarray], images_per_second: float, source: Any) -> Result:
        """Returns the result of an evaluation; all processes of a run call it alike.

        Args:
            judged: what `kept` returned of all batches, in the order of the images, and their examples.
            images_per_second: without the first batch, which is compiled for, where there are more.
            source: the images, which know what is true of them.
        """
        ...

    def plot(self, result: Any, directory: Path) -> None:
        """Draws a result into files of a run's folder."""
        ...
