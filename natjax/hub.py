"""Where a checkpoint is: a local path, a run's folder, a preset's name, or an id `owner/name` of the Hugging Face Hub.

What is on the Hub is downloaded where it is not in its cache. Nothing else is ever downloaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from natjax import run_files
from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME
from natjax.errors import CheckpointError, install_line
from natjax.presets import ALL_PRESETS
from natjax.text import did_you_mean

_HUB_SETTINGS = (CONFIG_NAME, PROCESSOR_NAME)
_HUB_FILES = (*_HUB_SETTINGS, "*.safetensors", "*.safetensors.index.json")
_HUB_TORCH_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
DIGITS = Path(__file__).parent / "demo" / "digits"  # the built-in classifier of handwritten digits


def locate(
    source: str | os.PathLike | None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike | None = None,
    weights: bool = True,
) -> Path:
    """Returns the local path of a checkpoint.

    Args:
        source: a file or folder; the folder of a run of training, for the model in it; "digits", the built-in classifier;
            the name of a preset, for its published weights, see `locate_preset`; or an id `owner/name` of the Hugging Face Hub.
            An existing path comes first. None, as where no model was named, is refused.
        revision: of the Hub: branch, tag or commit.
        local_files_only: use only what is in the Hub's cache, without a network.
        cache_dir: the Hub's cache.
        weights: whether what is on the Hub is downloaded with its weights; else configuration and image processor alone.

    Raises:
        CheckpointError: there is none; the message says what to do.
    """
    if source is None:
        raise CheckpointError(
            "no model given. Name one with --model (in Python, model=): a folder or file of weights, the folder of a run, a name "
            "of `natjax list` or an id owner/name of the Hugging Face Hub. `digits` is a small classifier of handwritten digits."
        )
    path, name = Path(source), os.fspath(source)
    options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only, "cache_dir": cache_dir}
    if os.path.exists(path):
        return _model_of(path)
    if name == "digits":
        return DIGITS
    if name in ALL_PRESETS:
        return locate_preset(name, weights=weights, **options)
    if "://" in name:
        raise CheckpointError(f"{name}: natjax loads from no address. Download the file, and give its path.")
    if not is_hub_id(name):
        raise CheckpointError(
            f"{name}: no such file or directory, and no id (owner/name) of the Hugging Face Hub or name of "
            f"`natjax list` either.{did_you_mean(name, ALL_PRESETS, cutoff=0.5)}"
        )
    return _download(name, options, weights=weights)


def push(source: str | os.PathLike, hub_id: str, *, private: bool = False) -> str:
    """Uploads a model to the Hugging Face Hub: configuration, weights, image processor and model card (README.md).

    Args:
        source: the model's folder, as `save_pretrained` writes it, or that of a run.
        hub_id: `owner/name`; made where the Hub has none of this name.
        private: whether others must not see it.

    Returns:
        Its address.

    Raises:
        CheckpointError: there is no such model, nobody is logged in, the Hub refuses, or it has a public model of this name
            and a private one is asked for. The Hub takes all files at once or none.
    """
    if not is_hub_id(hub_id):
        raise CheckpointError(f"{hub_id}: an id of the Hugging Face Hub is owner/name, such as jane/nat-flowers.")
    if not os.path.isdir(source):
        raise CheckpointError(f"{source}: no such folder; give the folder of a model or of a run.")
    folder = _model_of(Path(source))
    if not (folder / CONFIG_NAME).is_file() or not _has_weights(folder):
        raise CheckpointError(
            f"{folder}: no model in Hugging Face's format ({CONFIG_NAME} and model.safetensors), which `natjax convert` writes."
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(f"The Hugging Face Hub needs one more package: {install_line('hub')}") from error
    if not huggingface_hub.get_token():
        raise CheckpointError(
            "Nobody is logged in at the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN to a token that may write "
            "(https://huggingface.co/settings/tokens)."
        )
    try:
        api = huggingface_hub.HfApi()
        address = str(api.create_repo(hub_id, private=private, exist_ok=True))
        is_public = not api.repo_info(hub_id).private
        if not (private and is_public):
            api.upload_folder(
                repo_id=hub_id,
                folder_path=folder,
                allow_patterns=[*_HUB_FILES, *_HUB_TORCH_FILES, run_files.CARD],
                commit_message="Model of natjax",
            )
            return address
    except Exception as error:  # the hub's errors have no common base
        raise CheckpointError(f"{hub_id}: cannot be pushed to the Hugging Face Hub: {error}") from error
    raise CheckpointError(
        f"{hub_id}: exists and is public; leave --private out, or choose another name. Nothing was uploaded."
    )


def is_hub_id(name: str) -> bool:
    """Returns whether a name has the form of an id of the Hugging Face Hub, `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def locate_preset(name: str, *, weights: bool = True, **options: Any) -> Path:
    """Returns the local path of a preset's published weights, whatever lies in the current folder.

    Where no revision is asked for, those in the preset's folder in `weights_folder()` come first, then the Hub's.

    Args:
        name: of the preset.
        weights: see `locate`.
        **options: `revision`, `local_files_only` and `cache_dir`, see `locate`.

    Raises:
        CheckpointError: they cannot be loaded; the message says what to do.
        KeyError: there is no such preset.
    """
    hub_id, by_hand = ALL_PRESETS[name].hub_id, weights_folder() / name
    if options.get("revision") is None and _has_weights(by_hand):
        return by_hand
    if hub_id is None:
        raise CheckpointError(f"{name}: its weights are not on the Hugging Face Hub.{_advice(name)}")
    return _download(hub_id, options, weights=weights, preset=name)


def weights_folder() -> Path:
    """Returns the folder in which presets' names find weights that were fetched by hand: `natjax convert` fills it.

    It is `~/.cache/natjax`, or what the environment variable NATJAX_WEIGHTS says.
    """
    return Path(os.environ.get("NATJAX_WEIGHTS") or "~/.cache/natjax").expanduser()


def _model_of(path: Path) -> Path:
    """Returns the model in the folder of a run, the best so far where it has not ended; what is none of these as it is."""
    if not (path / run_files.RECIPE).is_file():
        return path
    if (path / run_files.MODEL).is_dir():
        return path / run_files.MODEL
    if _has_weights(path):
        return path  # a model, with the recipe that made it beside it
    raise CheckpointError(
        f"{path}: the run has no model before its first evaluation; go on with natjax train --resume."
    )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _download(hub_id: str, options: dict[str, Any], *, weights: bool, preset: str | None = None) -> Path:
    """Returns the local copy of what the Hub has under an id, which may be that of a preset's weights.

    Raises:
        CheckpointError: it cannot be had.
    """
    by_hand = "" if preset is None else _advice(preset)
    try:
        import huggingface_hub
    except ImportError as error:
        what = "no such file or directory" if preset is None else f"its weights are {hub_id} of the Hugging Face Hub"
        raise CheckpointError(
            f"{preset or hub_id}: {what}. To load them from the Hub, {install_line('hub')}.{by_hand}"
        ) from error
    try:
        found = Path(
            huggingface_hub.snapshot_download(
                hub_id, allow_patterns=list(_HUB_FILES if weights else _HUB_SETTINGS), **options
            )
        )
        if weights and not any(found.glob("*.safetensors")):
            huggingface_hub.snapshot_download(hub_id, allow_patterns=list(_HUB_TORCH_FILES), **options)
        return found
    except huggingface_hub.utils.LocalEntryNotFoundError:
        why = (
            "local_files_only forbids downloading"
            if options.get("local_files_only")
            else "there is no connection to it"
        )
        reason = f"not in the cache of the Hugging Face Hub, and {why}"
    except Exception as error:  # the hub's errors have no common base
        said = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        reason = f"cannot be downloaded from the Hugging Face Hub: {said}"
    missing = "" if preset else "no such file or directory here, and "
    raise CheckpointError(f"{hub_id}: {missing}{reason}.{by_hand}")  # the hub's own tracebacks are long and say no more


def _advice(preset: str) -> str:
    address, download = (
        ALL_PRESETS[preset].address,
        "Without the Hub: download" if ALL_PRESETS[preset].hub_id else "Download",
    )
    return (
        f" {download} {address} and run\n"
        f"  natjax convert {address.rsplit('/', 1)[1]} {weights_folder() / preset} --config {preset}\n"
        f"after which natjax finds the weights by the name {preset}."
    )
