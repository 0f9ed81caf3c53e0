"""A model that is not the shipped one: one layer of random weights, with the shipped tokenizer."""

from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sona.tiny import model_path


def write_other_model(folder: Path, *, chat_template: bool = True) -> str:
    """Write it to ``folder`` and return the folder's name."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    if not chat_template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
