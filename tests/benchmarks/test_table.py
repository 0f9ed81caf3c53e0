"""Tables of results."""

import dataclasses
import json

from rich.console import Console

from benchmarks.table import Table, spread


def test_markdown_has_a_title_a_head_and_a_line_a_row() -> None:
    table = Table.of("title", ["name", "x", "y"], [["a", 0.12345, 7], ["b|c", None, "–"]], note="of 3")
    assert table.markdown().splitlines() == [
        "**title**",
        "",
        "| name | x | y |",
        "| --- | ---: | ---: |",
        "| a | 0.123 | 7 |",
        "| b\\|c | – | – |",
        "",
        "of 3",
    ]


def test_table_survives_json() -> None:
    table = Table.of("title", ["name", "x"], [["a", 1.5]])
    assert Table.from_json(json.loads(json.dumps(dataclasses.asdict(table)))) == table


def test_shown_table_holds_every_cell() -> None:
    console = Console(width=100, record=True)
    Table.of("title", ["name", "x"], [["first", 1.5]]).show(console)
    shown = console.export_text()
    assert all(word in shown for word in ("title", "name", "first", "1.500"))


def test_spread_is_mean_and_sample_deviation() -> None:
    assert spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    assert spread([0.5], 2) == "0.50"
    assert spread([]) == "–"
