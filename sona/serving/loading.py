"""Find and load a causal language model and its tokenizer."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from sona import tiny
from sona.config import ServeConfig
from sona.errors import ModelError, ModelNotFoundError

SAMPLED_VALUES = 64  # of each parameter, for the fingerprint


def resolve(model: str | os.PathLike[str]) -> str:
    """A folder or hub id to load from; ``"tiny"`` is the small model that comes with sona."""
    name = os.fspath(model)
    if name == "tiny":
        return tiny.model_path()
    looks_like_path = name.startswith((".", "/", "~")) or Path(name).expanduser().exists() or name.count("/") > 1
    if not looks_like_path:
        return name
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelNotFoundError(f"model folder {name!r} does not exist; give a folder, a hub id or 'tiny'")
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"model folder {name!r} has no config.json; give a transformers model's folder")
    return str(folder)


def load(model: str | os.PathLike[str], settings: ServeConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen base model in evaluation mode, and its tokenizer.

    Only safetensors are read, and no code of the checkpoint is run.

    Raises:
        ModelNotFoundError: no such folder or hub id, or a file is missing.
        ModelError: no causal language model, or the device does not exist.
    """
    place = resolve(model)
    device = _device(settings)
    try:
        with _Quiet():
            tokenizer = AutoTokenizer.from_pretrained(place)
            base = AutoModelForCausalLM.from_pretrained(place, dtype=_dtype(settings, device), use_safetensors=True)
    except OSError as error:
        raise ModelNotFoundError(f"model {os.fspath(model)!r} can't be loaded: {_first_line(error)}") from error
    except (ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"model {os.fspath(model)!r} is no causal language model for us: {_first_line(error)}"
        ) from error
    base.requires_grad_(False)
    return base.eval().to(device), tokenizer  # type: ignore[no-untyped-call]


def fingerprint(model: PreTrainedModel) -> str:
    """Hex SHA-256 over the names, shapes and first and last values of all parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        flat = value.detach().reshape(-1)
        ends = torch.cat([flat[:SAMPLED_VALUES], flat[-SAMPLED_VALUES:]]).float().cpu().numpy()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(ends.tobytes())
    return digest.hexdigest()


def _device(settings: ServeConfig) -> str:
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"serve.device: {settings.device!r}, but this torch sees no CUDA device; use 'auto' or 'cpu'")
    return settings.device


def _dtype(settings: ServeConfig, device: str) -> torch.dtype | str:
    if settings.dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Quiet:
    """transformers draws a progress bar on stderr for every load; a host's terminal is not ours."""

    def __enter__(self) -> None:
        self._shown = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        if self._shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
