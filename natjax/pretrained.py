"""Loading and saving published weights: Hugging Face's format, from a directory, a file or the Hugging Face Hub."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.atomic import staging
from natjax.configuration import NatConfig
from natjax.hub import locate
from natjax_convert import Checkpoint, from_flax
from natjax_convert.convert import write_model
from natjax_convert.shapes import Kind


class PretrainedModel(Protocol):
    """What a model needs for its weights to be loaded and saved."""

    kind: ClassVar[str]
    config: NatConfig

    def __init__(self, config: NatConfig, *, dtype: Any, param_dtype: Any, implementation: str | None, rngs: nnx.Rngs):
        """Makes a model with random weights."""


Model = TypeVar("Model", bound=PretrainedModel)


def from_pretrained(
    model_class: type[Model],
    source: str | os.PathLike | Checkpoint,
    *,
    config: NatConfig | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    implementation: str | None = None,
    replace_head: bool = False,
    resize_biases: bool = False,
    rngs: nnx.Rngs | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike | None = None,
    **changes: Any,
) -> Model:
    """Makes a model with the weights of a checkpoint.

    Args:
        model_class: `NatForImageClassification`, `NatModel` or `NatBackbone`.
        source: a directory or file (see `natjax_convert.read_state_dict`), a run's folder, a preset's name, an id `owner/name`
            of the Hugging Face Hub (see `natjax.hub.locate`), or an open checkpoint.
        config: instead of the one beside the weights; needed for original SHI-Labs files: `natjax.get_config("dinat_mini")`.
        dtype: compute dtype; None computes in float32.
        param_dtype: dtype of the parameters.
        implementation: of neighborhood attention.
        replace_head: whether to start with a new, random classifier, as for `num_labels=10`.
        resize_biases: whether to interpolate relative positional biases, as for another `kernel_size`.
        rngs: source of a new classifier; `nnx.Rngs(0)` by default.
        revision: of the Hub: branch, tag or commit.
        local_files_only: use only what is in the Hub's cache, without a network.
        cache_dir: the Hub's cache.
        **changes: fields of `NatConfig` to change, such as `num_labels`, `out_features` or `drop_path_rate`.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not fit the model.
        ValueError: a change is impossible.
    """
    if "ignore_mismatched_sizes" in changes:
        raise ValueError(
            "ignore_mismatched_sizes is transformers'. Here replace_head=True starts with a new classifier, and "
            "resize_biases=True interpolates relative positional biases; whatever else does not fit is an error."
        )
    if isinstance(source, Checkpoint):
        checkpoint = source
    else:
        path = locate(source, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir)
        checkpoint = Checkpoint.open(path, config=config)
    config = config or checkpoint.config
    config = config.replace(**changes) if changes else config
    kind = cast("Kind", model_class.kind)
    params = checkpoint.to_flax(
        config=config, kind=kind, without_head=replace_head, resize_biases=resize_biases, lazy=True
    )

    # One tensor at a time, and copied: nothing refers to the file any more.
    params = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf), param_dtype), params)
    if replace_head and kind == "classifier" and config.num_labels:
        params["classifier"] = _new_head(config, param_dtype, rngs or nnx.Rngs(0))

    def build() -> Model:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation}
        return model_class(config, rngs=nnx.Rngs(0), **options)

    model = nnx.eval_shape(build)  # no random weights are ever made
    graphdef, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def save_pretrained(model: PretrainedModel, directory: str | os.PathLike, *, processor: Any = None) -> None:
    """Saves config.json and model.safetensors, which transformers 4.40.2 and `from_pretrained` load, bit for bit.

    Args:
        model: the model.
        directory: made where it does not exist; in an existing one only files of these names are replaced.
        processor: a `NatImageProcessor` to save beside the model.

    Raises:
        CheckpointError: the directory cannot be written; it is left as it was.
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    kind = cast("Kind", model.kind)
    tensors = from_flax(params, model.config, kind=kind)
    with staging(directory) as temporary:
        write_model(temporary, tensors, model.config, kind)
        if processor is not None:
            processor.save_pretrained(temporary)


def _new_head(config: NatConfig, param_dtype: Any, rngs: nnx.Rngs) -> dict[str, Any]:
    shape = (config.hidden_size, config.num_labels)
    kernel = nnx.initializers.truncated_normal(config.initializer_range)(rngs.params(), shape, param_dtype)
    return {"kernel": kernel, "bias": jnp.zeros(shape[1:], param_dtype)}
