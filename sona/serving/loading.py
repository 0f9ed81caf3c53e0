"""Load a causal language model and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from sona.config import ServeConfig
from sona.errors import ModelError, ModelNotFoundError
from sona.serving.model_hub import reachable
from sona.serving.resolve import resolve


def load(
    model: str | os.PathLike[str], settings: ServeConfig, *, own_dtype: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen base model in evaluation mode, and its tokenizer.

    Only safetensors are read, and no code of the checkpoint is run. ``own_dtype`` leaves the weights in the precision
    that they are stored in, on a CPU too, whatever the settings say.

    Raises:
        ModelNotFoundError: no such folder or hub id, or a file is missing.
        ModelError: no causal language model, its files are damaged or do not hold all of its weights, or the device
            does not exist or has too little memory.
    """
    name, place, device = os.fspath(model), resolve(model), _device(settings)
    with _quiet(), _explained(name, device):
        place = reachable(place)
        tokenizer = _tokenizer(name, place)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype="auto" if own_dtype else _dtype(settings, device),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed in the loading info, and refused here by name
        )
        base, found = loaded
        _check_weights(name, found)
        base.requires_grad_(False)
        return base.eval().to(device), tokenizer


def load_tokenizer(model: str | os.PathLike[str]) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer of a model alone, and the model's longest text in tokens, 0 where its configuration names none.

    Raises:
        ModelNotFoundError: no such folder or hub id, or a file is missing.
        ModelError: its files are damaged.
    """
    name, place = os.fspath(model), resolve(model)
    with _quiet(), _explained(name, "cpu"):
        place = reachable(place)
        tokenizer = _tokenizer(name, place)
        config = AutoConfig.from_pretrained(place, trust_remote_code=False).get_text_config()
    return tokenizer, int(getattr(config, "max_position_embeddings", None) or 0)


def _tokenizer(name: str, place: str) -> PreTrainedTokenizerBase:
    remedy = "put its tokenizer.json beside its config.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)  # None would ask on stdin
    except OSError:
        raise
    except Exception as error:  # a missing or damaged file raises whatever the code that reads it met
        raise ModelError(
            f"model {name!r}: its tokenizer or config.json can't be read ({_first_line(error)}); {remedy}"
        ) from error
    # For some architectures transformers makes up what is missing: a tokenizer that knows the special tokens alone.
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise ModelNotFoundError(f"model {name!r} has no tokenizer; {remedy}")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _check_weights(name: str, found: dict[str, Any]) -> None:
    """What a checkpoint lacks, transformers fills with random numbers. Tied weights are not listed as missing."""
    misshapen = sorted(key for key, *_ in found["mismatched_keys"])
    for keys, fault in (
        (misshapen, "of another shape than config.json says"),
        (sorted(found["missing_keys"]), "missing"),
    ):
        if keys:
            raise ModelError(
                f"model {name!r}: {len(keys)} of its weights are {fault}, such as {keys[0]!r}; "
                "copy or download the whole checkpoint again"
            )


def _device(settings: ServeConfig) -> str:
    device = settings.device
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ModelError(f"serve.device: {device!r}, but this torch sees {count} CUDA devices; use 'auto' or 'cpu'")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ModelError("serve.device: 'mps', but this torch sees no Apple GPU; use 'auto' or 'cpu'")
    return device


def _dtype(settings: ServeConfig, device: str) -> torch.dtype | str:
    if settings.dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]


@contextmanager
def _explained(name: str, device: str) -> Iterator[None]:
    """What loading raises, as an error of ours with a remedy."""
    try:
        yield
    except ModelError:
        raise
    except SafetensorError as error:
        raise ModelError(
            f"model {name!r}: its weights are damaged ({_first_line(error)}); copy or download them again"
        ) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"model {name!r} does not fit in the memory of {device!r}; "
            "set serve.dtype to 'bfloat16', or take another serve.device or a smaller model"
        ) from error
    except OSError as error:
        raise ModelNotFoundError(
            f"model {name!r} can't be loaded: {_first_line(error)}; "
            "give a hub id, or a folder with config.json, tokenizer.json and safetensors files"
        ) from error
    except Exception as error:  # transformers has no base for what a wrong config.json or checkpoint makes it raise
        raise ModelError(
            f"model {name!r} can't be used: {_first_line(error)}; "
            "give a causal language model that transformers loads without code of its own"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")


@contextmanager
def _quiet() -> Iterator[None]:
    """A progress bar and a table of faults are what transformers draws on stderr; a host's terminal is not ours."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
