"""A language model small enough to live in the package, and the tasks it was made for: no download, no waiting.

`model_path()` is a folder as Hugging Face's `from_pretrained` reads it. The model has the skills of `SKILLS` and none
of the tasks of `AgentWorld`, which is what there is to learn. Importing this package loads no tensor library.
"""

from pathlib import Path

from sona.tiny.agent_tasks import AGENT_TASKS, AgentWorld
from sona.tiny.example import Example, Split
from sona.tiny.skills import SKILLS, sample

__all__ = ["AGENT_TASKS", "SKILLS", "AgentWorld", "Example", "Split", "model_path", "sample"]


def model_path() -> str:
    """Return the absolute path of the folder with the weights, the tokenizer and `recipe.json`."""
    return str(Path(__file__).resolve().parent / "weights")
