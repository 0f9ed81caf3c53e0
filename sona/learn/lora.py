"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) on a frozen model, and their folders in PEFT's format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sona.config import LoraConfig
from sona.errors import ConfigError, ModelError

ADAPTER = "default"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def attach(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """A new adapter on ``model``: A drawn from ``seed`` (Kaiming uniform), B zero, so that no output changes yet.

    The layers are put into ``model`` itself, its own parameters are frozen, and the adapter's are float32 whatever the
    model's precision. torch's global random state stays as it was. The model is left in eval mode, to be trained in it.

    Raises:
        ConfigError: ``config.target_modules`` names no linear layer of the model, or its output head.
    """
    wrapped = _wrap(
        model,
        peft.LoraConfig(
            r=config.rank,
            # Declared an int, by vLLM too, but any number works: 16.0 is written as 16.
            lora_alpha=int(config.alpha) if config.alpha.is_integer() else config.alpha,  # type: ignore[arg-type]
            target_modules=target_modules(model, config),
            task_type="CAUSAL_LM",
            bias="none",
            lora_dropout=0.0,
        ),
    )
    load_weights(wrapped, fresh_weights(wrapped, seed))
    return wrapped


def fresh_weights(model: PeftModel, seed: int) -> dict[str, Tensor]:
    """What a new adapter of this shape begins with: A drawn from ``seed`` (Kaiming uniform), B zero.

    As PEFT and nn.Linear do, but on the CPU from a generator of its own: the same numbers on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    fresh: dict[str, Tensor] = {}
    for name, parameter in parameters(model).items():
        fresh[name] = torch.zeros(parameter.shape)
        if name.endswith("lora_A.weight"):
            nn.init.kaiming_uniform_(fresh[name], a=math.sqrt(5), generator=generator)
    return fresh


def _wrap(model: PreTrainedModel, config: peft.LoraConfig) -> PeftModel:
    # PEFT draws initial weights from the global generator; they are overwritten, and its state is put back.
    with torch.random.fork_rng(devices=[]):
        wrapped = peft.get_peft_model(model, config, adapter_name=ADAPTER)
    # Dropout of the base model would draw from the global generator too, so adapters are trained in eval mode.
    wrapped.eval()
    return wrapped


def target_modules(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Names of the linear layers that get an adapter, sorted: the configured ones, or all but the output head.

    PEFT's own ``"all-linear"`` finds the same layers, but writes their full paths into small models' folders (names
    alone from 20 layers on), in an order that changes with Python's hash seed.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    heads = {name for name, module in model.named_modules() if module is head}
    if not config.target_modules:
        return sorted({name.rsplit(".", 1)[-1] for name in layers - heads})
    for wanted in config.target_modules:
        found = {name for name in layers if name == wanted or name.endswith(f".{wanted}")}
        if not found or found & heads:
            allowed = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers - heads}))
            raise ConfigError(f"lora.target_modules: {wanted!r}; this model has {allowed}")
    return sorted(set(config.target_modules))


def layers(model: PeftModel) -> dict[str, nn.Linear]:
    """The adapter's own linear maps, A (in -> rank) and B (rank -> out), by the name their weight has in the folder."""
    found: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith((f".lora_A.{ADAPTER}", f".lora_B.{ADAPTER}")):
            found[f"{name.removesuffix(f'.{ADAPTER}')}.weight"] = module
    return dict(sorted(found.items()))


def parameters(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's parameters themselves, by name, sorted."""
    return {name: layer.weight for name, layer in layers(model).items()}


def weights(model: PeftModel) -> dict[str, Tensor]:
    """Copies of the adapter's tensors by their names in the folder, sorted: A (rank, in) and B (out, rank), float32."""
    return {name: parameter.detach().clone() for name, parameter in parameters(model).items()}


@torch.no_grad()
def load_weights(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Replace the adapter's tensors, all or none.

    Raises:
        ModelError: names or shapes other than the adapter's, or a number that is not finite.
    """
    targets = parameters(model)
    if targets.keys() != tensors.keys():
        odd = sorted(targets.keys() ^ tensors.keys())
        raise ModelError(f"adapter: {len(odd)} tensors do not match this model's, such as {odd[0]!r}")
    for name, parameter in targets.items():
        if parameter.shape != tensors[name].shape:
            raise ModelError(f"adapter: {name} is {tuple(tensors[name].shape)}; {tuple(parameter.shape)} is needed")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ModelError(f"adapter: {name} holds NaN or an infinity; it was not loaded")
    for name, parameter in targets.items():
        parameter.copy_(tensors[name])


def save_adapter(model: PeftModel, folder: Path, *, base: str | None = None) -> None:
    """Write the adapter into ``folder``: two files, which PEFT, vLLM and SGLang read.

    ``base`` is the base model's hub id, as the configuration's ``base_model_name_or_path``. PEFT's own
    ``save_pretrained`` is not used: it asks the network about the base model, writes a model card of placeholders, this
    machine's path of the base model, and sets in the order of Python's hash seed, so that no two folders are the same
    bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights(model).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config: dict[str, Any] = model.peft_config[ADAPTER].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def load_adapter(model: PreTrainedModel, folder: Path, *, max_rank: int = 1024) -> PeftModel:
    """The adapter in ``folder`` put on ``model``, trainable; the folder alone is read, never the network.

    Raises:
        ModelError: a file is missing or damaged, it is no LoRA adapter of rank 1 to ``max_rank``, or it does not fit
            the model. Where the tensors were at fault, ``model`` already holds an adapter and is to be thrown away.
    """
    config = _read_config(folder / CONFIG_FILE, max_rank)
    tensors = read_weights(folder)
    try:
        wrapped = _wrap(model, config)
    except ValueError as error:
        raise ModelError(f"adapter {folder.name}: does not fit this model ({error})") from None
    load_weights(wrapped, tensors)
    return wrapped


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's folder by name, on the CPU.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"adapter {folder.name}: {WEIGHTS_FILE} can't be read ({error})") from None


def _read_config(path: Path, max_rank: int) -> peft.LoraConfig:
    where = f"adapter {path.parent.name}: {path.name}"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{where} can't be read ({error})") from None
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        raise ModelError(f"{where} describes no LoRA adapter")
    rank = raw.get("r")
    if type(rank) is not int or not 1 <= rank <= max_rank:
        raise ModelError(f"{where} has rank {rank!r}; 1 to {max_rank} is allowed")
    # PEFT warns where the base's name isn't the one in the model's own folder, which tells nothing: a path is no name.
    ours = {"inference_mode": False, "lora_dropout": 0.0, "base_model_name_or_path": None}
    try:
        return peft.LoraConfig(**raw | ours)
    except TypeError as error:  # written by a PEFT that knows more settings than this one
        raise ModelError(f"{where}: {error}; update peft") from None
