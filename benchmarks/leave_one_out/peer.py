"""context-cite from PyPI (Cohen-Wang et al. 2024, arXiv:2409.00729): random ablations and a LASSO."""

from __future__ import annotations

import contextlib
import importlib
import io
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.leave_one_out.model import random_model
from benchmarks.leave_one_out.scenario import MEMORIES, conversation
from sona.tiny import model_path

ABLATIONS, KEEP = 64, 0.5


def trouble() -> str:
    """Why it can't be measured; empty where it can."""
    return "" if find_spec("context_cite") else "context-cite is not installed; run `make peers`"


def last_response_s(layout: str, vocab: int, seed: int) -> float:
    """CPU seconds for the last response alone: its own code computes the masks, the passes and the regression; the
    tokens are given to it, for its classes know a single question about a single text.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars, and warnings for want of a GPU
        return _last_response_s(layout, vocab, seed)


def _last_response_s(layout: str, vocab: int, seed: int) -> float:
    utils: Any = importlib.import_module("context_cite.utils")
    solver: Any = importlib.import_module("context_cite.solver")
    torch.set_num_threads(1)
    model, tokenizer = random_model(vocab, seed), AutoTokenizer.from_pretrained(model_path())
    parts = [part for turn in conversation(layout, vocab, seed) for part in turn]
    response = [int(token) for token in parts[-1].ids]

    def prompt_ids(mask: Any) -> list[int]:
        kept = [part.ids for part in parts[:-1] if part.memory < 0 or mask[part.memory]]
        return [int(token) for token in np.concatenate(kept)]

    began = time.process_time()
    masks, log_odds = utils.get_masks_and_logit_probs(
        model, tokenizer, ABLATIONS, MEMORIES, prompt_ids, response, KEEP, batch_size=1
    )
    solver.LassoRegression().fit(masks, utils.aggregate_logit_probs(log_odds), len(response))
    return time.process_time() - began
