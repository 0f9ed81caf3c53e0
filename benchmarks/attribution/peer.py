"""The published ``context-cite``, in a process of its own: it needs packages that sona does not, and imports them all.

Run as a program it is that process: a JSON object a line comes in, one goes out. It imports nothing of ours, so that it
runs under any Python that has ``context-cite``.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SEPARATOR = "\n\n"
MISSING = 3  # exit code: the package can't be imported


class ContextCite:
    """The peer, with a model that lies in a folder.

    Args:
        python: an interpreter whose environment has ``context-cite``.
        model: the folder.
    """

    def __init__(self, python: str, model: Path) -> None:
        self._process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        self.version = self._read().get("version")
        """None: it is not installed there."""

    def weights(self, sources: Sequence[str], query: str, response: str, runs: int) -> list[float]:
        """Of each source in the prompt ``sources``, blank lines between, then ``query``."""
        assert self._process.stdin is not None
        asked = {"sources": list(sources), "query": query, "response": response, "runs": runs}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        weights = self._read().get("weights")
        if weights is None:
            raise RuntimeError("context-cite ended without an answer")
        return [float(weight) for weight in weights]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # the rest is what its packages print
                found: dict[str, Any] = json.loads(line)
                return found
        return {}


def serve(folder: str) -> Iterator[dict[str, Any]]:
    """Answer what stdin asks."""
    import nltk

    nltk.download = lambda *_, **__: False  # it would fetch a sentence splitter, which is not used here
    from importlib.metadata import version

    import torch
    from context_cite import ContextCiter
    from context_cite.context_partitioner import BaseContextPartitioner
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class Given(BaseContextPartitioner):  # type: ignore[misc]
        """Sources as they were given."""

        def __init__(self, parts: list[str]) -> None:
            super().__init__(SEPARATOR.join(parts))
            self.parts = parts

        num_sources = property(lambda self: len(self.parts))

        def split_context(self) -> None:
            pass

        def get_source(self, index: int) -> str:
            return self.parts[index]

        def get_context(self, mask: Any = None) -> str:
            kept = [True] * len(self.parts) if mask is None else mask
            return SEPARATOR.join(part for part, here in zip(self.parts, kept, strict=True) if here)

    torch.set_num_threads(1)
    logging.disable()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    yield {"version": version("context-cite")}
    for line in sys.stdin:
        asked = json.loads(line)
        parts = Given(asked["sources"])
        citer = ContextCiter(
            model,
            tokenizer,
            parts.context,
            asked["query"],
            partitioner=parts,
            num_ablations=asked["runs"],
            batch_size=asked["runs"],
            prompt_template="{context}" + SEPARATOR + "{query}",
        )
        _, prompt = citer._get_prompt_ids(return_prompt=True)
        citer._cache["output"] = prompt + asked["response"]  # the answer that the others explain too
        yield {"weights": citer.get_attributions(verbose=False).tolist()}


if __name__ == "__main__":
    try:
        for answer in serve(sys.argv[1]):
            print(json.dumps(answer), flush=True)
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(MISSING)
