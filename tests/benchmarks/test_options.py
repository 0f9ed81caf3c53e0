"""The command line of the benchmarks."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from benchmarks.options import new_parser, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"), [("1", (0,)), ("3", (0, 1, 2)), ("0,2,4", (0, 2, 4)), ("7,", (7,)), ("5,7", (5, 7))]
)
def test_seeds_are_a_number_of_them_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "-1", "", ",", "many", "1,1", "-1,2", "1.5"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="seed"):
        parse_seeds(text)


def test_defaults_are_one_seed_and_the_given_file() -> None:
    options = new_parser("about", Path("out/x.json")).parse_args([])
    assert (options.quick, options.seeds, options.out) == (False, (0,), Path("out/x.json"))
