"""An adapter's folder as vLLM and SGLang take it: whether it is one, and making one of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sona.errors import ModelError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

# Settings of PEFT's that reach beyond a pair of matrices beside a linear layer, scaled by alpha / r. vLLM refuses
# modules_to_save and DoRA (vllm/lora/peft_helper.py); of most of the others a server would take no notice, and answer
# otherwise than PEFT.
NOT_PLAIN = (
    "modules_to_save",
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
)
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``vllm serve --max-lora-rank`` may be (MaxLoRARanks in vllm/config/lora.py)."""


def check_plain(folder: Path, name: str) -> int:
    """The rank of the adapter in a PEFT folder that PEFT, vLLM and SGLang all take.

    Raises:
        ModelError: it is none; ``name`` is how it is called.
    """
    config, keys = _read(folder, name)
    for why in (_not_plain(config), _odd_key(keys)):
        if why:
            raise ModelError(f"{name} is not plain LoRA: {why}; vLLM and SGLang would not take it")
    return int(config["r"])


def vllm_rank(rank: int) -> int | None:
    """The smallest ``--max-lora-rank`` of vLLM's that takes an adapter of this rank; None where none does."""
    return next((limit for limit in VLLM_RANKS if limit >= rank), None)


def prepare(source: Path, target: Path, name: str) -> int:
    """Make of the adapter in ``source`` the folder ``target`` for a server, and return its rank there.

    Where the rank is one of :data:`VLLM_RANKS` both files are the same ones (hard links; copies where the disk has
    none). Else it is raised to the next of them by zeros: with A (r, in) above zero rows and B (out, r) beside zero
    columns B A is what it was, and alpha grows as the rank does, so that alpha / r stays.

    Raises:
        ModelError: it is not plain LoRA, or of a higher rank than vLLM knows; ``name`` is how it is called.
        OSError: ``target`` can't be written, or is there already.
    """
    rank = check_plain(source, name)
    wide = vllm_rank(rank)
    if wide is None:
        raise ModelError(f"{name} is of rank {rank}; at most {VLLM_RANKS[-1]} is allowed: lower lora.rank")
    target.mkdir(parents=True)
    if wide == rank:
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            _link(source / file, target / file)
    else:
        _write_wider(source, target, rank, wide)
    return wide


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _write_wider(source: Path, target: Path, rank: int, wide: int) -> None:
    import torch  # numpy has no bfloat16
    from safetensors.torch import load_file, save_file

    tensors = {}
    for key, value in load_file(source / WEIGHTS_FILE).items():
        more = (0, 0, 0, wide - rank) if ".lora_A." in key else (0, wide - rank)  # rows of A (r, in), columns of B
        tensors[key] = torch.nn.functional.pad(value, more).contiguous()
    save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
    config = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    config |= {"r": wide, "lora_alpha": config["lora_alpha"] * wide / rank}
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read(folder: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """Its configuration, and the names of its tensors."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("its configuration is no object")
        with safe_open(folder / WEIGHTS_FILE, framework="numpy") as tensors:
            return config, list(tensors.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{name} can't be read ({error}); see 'sona doctor'") from None


def _not_plain(config: Mapping[str, Any]) -> str:
    """What the servers do not take; "" where there is nothing."""
    if config.get("peft_type") != "LORA" or type(config.get("r")) is not int:
        return f"peft_type {config.get('peft_type')!r} of rank {config.get('r')!r}"
    if not isinstance(config.get("target_modules"), list):
        return f"target_modules is {config.get('target_modules')!r}, no list"
    if config.get("bias") not in (None, "none"):
        return f"bias is {config['bias']!r}"
    return next((f"{key} is {config[key]!r}" for key in NOT_PLAIN if config.get(key) not in (None, False, [], {})), "")


def _odd_key(keys: list[str]) -> str:
    odd = [key for key in keys if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
    return f"tensor {odd[0]!r}" if odd else "" if keys else "no tensors"
