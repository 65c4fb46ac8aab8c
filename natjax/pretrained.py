"""Loading and saving published weights: Hugging Face's format, from a directory, a file or the Hugging Face Hub."""

from __future__ import annotations

import os
import warnings
from typing import Any, ClassVar, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.atomic import staging
from natjax.configuration import Configuration, DenseConfig
from natjax.errors import CheckpointError, MissingNormsWarning
from natjax.hub import locate
from natjax.nn.initializers import truncated_normal
from natjax_convert import Checkpoint, from_flax
from natjax_convert.convert import write_model
from natjax_convert.pieces import BUFFERS
from natjax_convert.shapes import Kind, parameters


class PretrainedModel(Protocol):
    """What a model needs for its weights to be loaded and saved."""

    kind: ClassVar[str]
    config_class: ClassVar[type[Configuration]]
    config: Any

    def __init__(self, config: Any, *, dtype: Any, param_dtype: Any, implementation: str | None, rngs: nnx.Rngs):
        """Makes a model with random weights."""


Model = TypeVar("Model", bound=PretrainedModel)


def from_pretrained(
    model_class: type[Model],
    source: str | os.PathLike | Checkpoint,
    *,
    config: Any = None,
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
        model_class: `NatForImageClassification`, `NatModel`, `NatBackbone`, `UperNetForSemanticSegmentation`,
            `MaskRcnnForObjectDetection` or `CascadeMaskRcnnForObjectDetection`.
        source: a directory or file (see `natjax_convert.read_state_dict`), a run's folder, a preset's name, an id `owner/name`
            of the Hugging Face Hub (see `natjax.hub.locate`), or an open checkpoint.
        config: instead of the one beside the weights, or in a file of mmsegmentation or mmdetection; needed for SHI-Labs'
            classifiers: `natjax.get_config("dinat_mini")`.
        dtype: compute dtype; None computes in float32.
        param_dtype: dtype of the parameters.
        implementation: of neighborhood attention.
        replace_head: whether to start with a new, random classifier, as for `num_labels=10`.
        resize_biases: whether to interpolate relative positional biases, as for another `kernel_size`.
        rngs: source of a new classifier; `nnx.Rngs(0)` by default.
        revision: of the Hub: branch, tag or commit.
        local_files_only: use only what is in the Hub's cache, without a network.
        cache_dir: the Hub's cache.
        **changes: fields of the configuration to change, such as `num_labels`, `out_features` or `drop_path_rate`.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not fit the model.
        ValueError: a change is impossible.
    """
    if "ignore_mismatched_sizes" in changes:
        raise ValueError(
            "ignore_mismatched_sizes is transformers'. Here replace_head=True starts with a new classifier, and "
            "resize_biases=True interpolates relative positional biases; whatever else does not fit is an error."
        )
    hub: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only, "cache_dir": cache_dir}
    checkpoint = _opened(source, config, **hub)
    config = config or checkpoint.config
    kind, family = cast("Kind", model_class.kind), model_class.config_class
    if not issubclass(family, DenseConfig):
        config = config.trunk
    elif config.model_type not in family.model_types:
        others = f" but those of a {config.title}" if isinstance(config, DenseConfig) else ""
        raise CheckpointError(
            f"{checkpoint.path}: has no heads of a {family.title}{others}; "
            f"{model_class.__name__}.from_backbone starts with new ones."
        )
    config = config.replace(**changes) if changes else config
    params = checkpoint.to_flax(
        config=config, kind=kind, without_head=replace_head, resize_biases=resize_biases, lazy=True
    )
    params = _arrays(params, param_dtype)
    if replace_head:
        _add_new_head(params, config, kind, param_dtype, rngs or nnx.Rngs(0))

    def build() -> Model:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation}
        return model_class(config, rngs=nnx.Rngs(0), **options)

    model = nnx.eval_shape(build)  # no random weights are ever made
    graphdef, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def from_backbone(
    model_class: type[Model],
    source: str | os.PathLike | Checkpoint,
    *,
    config: Any = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    implementation: str | None = None,
    resize_biases: bool = False,
    rngs: nnx.Rngs | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike | None = None,
    **changes: Any,
) -> Model:
    """Makes a segmentation or detection model with the backbone of a checkpoint and new, random heads, to be trained.

    Args:
        model_class: `UperNetForSemanticSegmentation`, `MaskRcnnForObjectDetection` or `CascadeMaskRcnnForObjectDetection`.
        source: of any model of natjax: a classifier, whose feature maps get norms that start as the identity, a backbone, or
            another segmentation or detection model. See `from_pretrained` for what may be given.
        config: the source's, see `from_pretrained`.
        dtype: compute dtype; None computes in float32.
        param_dtype: dtype of the parameters.
        implementation: of neighborhood attention.
        resize_biases: whether to interpolate relative positional biases, as for another `kernel_size`.
        rngs: source of the heads; `nnx.Rngs(0)` by default.
        revision: of the Hub: branch, tag or commit.
        local_files_only: use only what is in the Hub's cache, without a network.
        cache_dir: the Hub's cache.
        **changes: fields of the model's configuration or of its backbone, `num_labels` or `id2label` among them: `dilations`, as
            those of segmentation and detection are others than those of classification, `drop_path_rate`, `hidden_size`.

    Raises:
        CheckpointError: there is no such checkpoint, or its backbone does not fit the changes.
        ValueError: a change is impossible, or none says the number of classes.
    """
    if not {"num_labels", "id2label", "label2id"} & set(changes):
        raise ValueError("from_backbone needs the classes of the model: give num_labels or id2label.")
    hub: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only, "cache_dir": cache_dir}
    checkpoint = _opened(source, config, **hub)
    trunk = (config or checkpoint.config).trunk
    trunk = trunk.replace(out_features=trunk.stage_names[1:])
    new = cast("type[DenseConfig]", model_class.config_class)(backbone_config=trunk, num_labels=1).replace(**changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingNormsWarning)  # as the docstring says
        params = checkpoint.to_flax(config=new.trunk, kind="backbone", resize_biases=resize_biases, lazy=True)
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation}
    graphdef, state = nnx.split(model_class(new, rngs=rngs or nnx.Rngs(0), **options))
    nnx.replace_by_pure_dict(state, {**nnx.to_pure_dict(state), "backbone": _arrays(params, param_dtype)})
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
    params = nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    kind = cast("Kind", model.kind)
    tensors = from_flax(params, model.config, kind=kind)
    with staging(directory) as temporary:
        write_model(temporary, tensors, model.config, kind)
        if processor is not None:
            processor.save_pretrained(temporary)


def _opened(source: Any, config: Any, **hub: Any) -> Checkpoint:
    """Returns a checkpoint, opened where it is the name of one."""
    return source if isinstance(source, Checkpoint) else Checkpoint.open(locate(source, **hub), config=config)


def _arrays(params: dict, param_dtype: Any) -> dict:
    """Reads parameters, one at a time, and copies them: nothing refers to the file any more."""

    def read(path: tuple, leaf: Any) -> jax.Array:
        return jnp.array(np.asarray(leaf), BUFFERS.get(path[-1].key, param_dtype))

    return jax.tree.map_with_path(read, params)


def _add_new_head(params: dict, config: Any, kind: Kind, param_dtype: Any, rngs: nnx.Rngs) -> None:
    """Puts random classifiers among the parameters of a model that has any."""
    for parameter in parameters(config, kind):
        if not parameter.of_classifier:
            continue
        *modules, name = parameter.path
        module = params
        for step in modules:
            module = module.setdefault(step, {})
        shape, init = parameter.shape, truncated_normal(config.classifier_range(modules[-1]))
        module[name] = init(rngs.params(), shape, param_dtype) if name == "kernel" else jnp.zeros(shape, param_dtype)
