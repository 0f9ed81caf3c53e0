"""The command line: what every benchmark takes."""

from __future__ import annotations

import argparse
from pathlib import Path

OUT = Path(__file__).resolve().parent / "out"


def new_parser(about: str, out: Path) -> argparse.ArgumentParser:
    """A parser with the common options; ``out`` is where the JSON goes unless told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most 60 s: smaller, so its figures are not the result")
    parser.add_argument("--seeds", type=parse_seeds, default=(0,), metavar="N", help="how many (3), or which (0,1,2)")
    parser.add_argument(
        "--out", type=Path, default=out, metavar="FILE", help=f"the JSON (default: {out.parent.name}/{out.name})"
    )
    return parser


def add_data(parser: argparse.ArgumentParser, fields: str) -> None:
    """``--data DIR``, which may be given more than once."""
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help=f"folder whose dev/*.jsonl has rows with {fields}",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model DIR``, which may be given more than once; ``shipped`` is the one that comes with sona."""
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="DIR",
        help="a transformers model's folder (default: shipped, sona's own)",
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """``3`` is the seeds 0, 1, 2; ``5,7`` is 5 and 7, and ``5,`` is 5 alone."""
    try:
        listed = tuple(int(part) for part in text.split(",") if part) if "," in text else tuple(range(int(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a number of seeds, or the seeds themselves as 0,1,2"
        ) from None
    if not listed or min(listed) < 0 or len(set(listed)) < len(listed):
        raise argparse.ArgumentTypeError(f"{text!r}: give at least one seed, each once and not below 0")
    return listed
