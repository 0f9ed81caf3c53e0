"""Make the model that ships in `sona/tiny/weights`: tokenizer, training, scores, recipe.

python scripts/train_tiny.py --out sona/tiny/weights
"""

import argparse
import hashlib
import json
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedModel

from sona.tiny.agent_tasks import AGENT_TASKS, AgentWorld
from sona.tiny.conversation import PROMPT_WEIGHT, RESPONSE_WEIGHT
from sona.tiny.model import MAX_TOKENS, new_model
from sona.tiny.scoring import exact_match
from sona.tiny.skills import SKILLS, sample
from sona.tiny.tokenizer import ASSISTANT, END, PAD, SPECIALS, USER, build_tokenizer, save_tokenizer
from sona.tiny.training import SKILL_SHARES, TrainingSettings, train

VOCABULARY_SIZE = 1536
SCORED_EXAMPLES = 500
REPORT_EVERY_STEPS = 100
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


def make_tokenizer(seed: int) -> Tokenizer:
    examples = [example for skill in SKILLS for example in sample(skill, 2000, seed)]
    texts = [text for example in examples for text in (example.prompt, example.response)]
    return build_tokenizer(texts, VOCABULARY_SIZE)


def held_out_scores(model: PreTrainedModel, tokenizer: Tokenizer, seed: int) -> dict[str, float]:
    return {skill: exact_match(model, tokenizer, sample(skill, SCORED_EXAMPLES, seed, "held_out")) for skill in SKILLS}


def agent_scores(model: PreTrainedModel, tokenizer: Tokenizer, seed: int) -> dict[str, float]:
    world = AgentWorld(seed)
    return {
        task: exact_match(model, tokenizer, world.sample(task, SCORED_EXAMPLES, seed, "held_out"))
        for task in AGENT_TASKS
    }


def save_model(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> str:
    """Write the folder that `from_pretrained` reads, and return the sha256 of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = {"pad_token_id": SPECIALS.index(PAD), "eos_token_id": SPECIALS.index(END)}
    model.generation_config = GenerationConfig.from_dict({"max_new_tokens": 64, **ends})
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, MAX_TOKENS)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)  # safetensors writes it for its owner alone
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def write_samples(model: PreTrainedModel, tokenizer: Tokenizer, seed: int, count: int) -> None:
    """Print questions that the model asks itself, with its answers: what retention probes are made of."""
    torch.manual_seed(seed)
    start = torch.full((count, 1), SPECIALS.index(USER))
    rows = model.generate(start, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=48)  # type: ignore[operator]
    for row in rows.tolist():
        text = tokenizer.decode(row, skip_special_tokens=False)
        print(text.removeprefix(USER).partition(END)[0].replace(ASSISTANT, "  ->  "))


def progress(settings: TrainingSettings) -> Any:
    began = time.monotonic()

    def report(step: int, loss: float) -> None:
        if (step + 1) % REPORT_EVERY_STEPS == 0:
            print(f"step {step + 1}/{settings.steps}  loss {loss:.3f}  {time.monotonic() - began:.0f} s", flush=True)

    return report


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made if it is not there")
    parser.add_argument("--seed", type=int, default=TrainingSettings().seed)
    parser.add_argument("--steps", type=int, default=TrainingSettings().steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=0, help="print so many questions that the model asks itself")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    settings = replace(TrainingSettings(), seed=arguments.seed, steps=arguments.steps)
    tokenizer = make_tokenizer(settings.seed)
    torch.manual_seed(settings.seed)
    model = new_model(tokenizer.get_vocab_size())
    began_cpu_s = time.process_time()
    train(model, tokenizer, settings, progress(settings))
    trained_cpu_s = time.process_time() - began_cpu_s
    recipe = {
        "settings": asdict(settings),
        "skill_shares": SKILL_SHARES,
        "prompt_weight": PROMPT_WEIGHT,
        "response_weight": RESPONSE_WEIGHT,
        "parameters": model.num_parameters(),
        "vocabulary": tokenizer.get_vocab_size(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "threads": arguments.threads,
        "train_cpu_s": round(trained_cpu_s, 1),
        "scored_examples": SCORED_EXAMPLES,
        "held_out_scores": held_out_scores(model, tokenizer, settings.seed),
        "agent_task_scores": agent_scores(model, tokenizer, settings.seed),
        "sha256": save_model(model, tokenizer, arguments.out),
    }
    (arguments.out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    print(json.dumps(recipe, indent=2))
    write_samples(model, tokenizer, settings.seed, arguments.samples)


if __name__ == "__main__":
    main()
