"""The tiny model's tokenizer: bytes at the bottom, so that any text survives, and whole words of the lexicon on top.

Three things make copying easy for a small model. A word of the lexicon is one token (`ignore_merges`: a piece that is
in the vocabulary is taken whole, so that a word needs no chain of merges leading up to it). The first word of a turn
looks like every other word, because a space is put before each stretch of text and taken away again when decoding.
Numbers are single digits.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sona.tiny.lexicon import DIGITS
from sona.tiny.skills import ARGUMENTS, PLAIN_WORDS

PAD: Final = "<|pad|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
END: Final = "<|end|>"
SYSTEM: Final = "<|system|>"
TOOL: Final = "<|tool|>"

SPECIALS: Final = (PAD, USER, ASSISTANT, END, SYSTEM, TOOL)
"""The markers, in the order of their ids from 0."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_PIECES: Final = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
_SPACE: Final = "Ġ"  # what the byte-level alphabet writes for a space


def _whole_words() -> list[str]:
    """The pieces that get a token of their own: words and digits after a space, and those that stand behind a mark in
    a tool call.
    """
    inner = dict.fromkeys(word for name, values in ARGUMENTS.items() for word in (name, *values))
    return [_SPACE + word for word in (*DIGITS, *PLAIN_WORDS)] + [word for word in inner if word not in DIGITS]


def _pieces() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _learn_merges(texts: Iterable[str], limit: int) -> list[tuple[str, str]]:
    """Return up to `limit` byte-pair merges of the texts, the most useful first."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Prepend(" ")
    learner.pre_tokenizer = _pieces()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + limit, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def _vocabulary(merges: Iterable[tuple[str, str]], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Fill a vocabulary of `size` with the markers, the bytes, the whole words, and as many merges as there is room
    for.
    """
    entries = dict.fromkeys([*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *_whole_words()])
    kept: list[tuple[str, str]] = []
    for left, right in merges:
        if len(entries) == size:
            break
        entries.setdefault(left + right)
        kept.append((left, right))
    return {entry: number for number, entry in enumerate(entries)}, kept


def build_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of at most `size` entries whose spare merges are learnt from the texts.

    `decode(encode(text), skip_special_tokens=False) == text` for every text, markers included.

    Raises:
        ValueError: the markers, bytes and words alone are more than `size`.
    """
    needed = len(SPECIALS) + 256 + len(_whole_words())
    if needed > size:
        raise ValueError(f"a vocabulary of {size} is too small: markers, bytes and words need {needed}")
    vocabulary, merges = _vocabulary(_learn_merges(texts, size), size)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = _pieces()
    # The normalizer puts a space before every stretch of text, so also behind each marker: both are taken away here.
    behind_markers = [decoders.Replace(marker + " ", marker) for marker in SPECIALS]
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0), *behind_markers])
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in SPECIALS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` as `AutoTokenizer.from_pretrained` reads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "additional_special_tokens": [USER, ASSISTANT, SYSTEM, TOOL],
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
