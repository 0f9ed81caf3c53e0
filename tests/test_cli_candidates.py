"""``sona candidates`` on terminals of several widths."""

from pathlib import Path

import pytest

from sona import cli_candidates
from sona.errors import InvalidInputError
from sona.storage.store import Store
from sona.terminal import out
from tests.reviews import candidate, turn
from tests.storage.records import add


@pytest.mark.parametrize(("width", "has_when"), [(80, False), (120, True)])
def test_the_list_is_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, has_when: bool
) -> None:
    with Store.open(tmp_path / "store") as store:
        add(store, [turn(0), turn(1)])
        long = candidate(1, source="a-source-with-a-long-name", response="many words " * 20)
        store.candidates.add([candidate(0), long])
    monkeypatch.setattr(out, "_width", width)
    cli_candidates.list_(store=tmp_path / "store")
    head, *lines = capsys.readouterr().out.splitlines()
    names = ["number", "state", "nats", *(["when"] if has_when else []), "source", "answer", "memories"]
    assert head.split() == names
    assert [line.split()[0] for line in lines] == ["2", "1"]
    assert "2.000" in lines[0]
    assert "…" in lines[0]
    assert all(len(line) <= width for line in (head, *lines))


def test_confirming_without_saying_what_names_both_answers(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="--trained, or --given-up"):
        cli_candidates.confirm(1, store=tmp_path / "store")
    with pytest.raises(InvalidInputError, match="--trained, or --given-up"):
        cli_candidates.candidates(["confirm", "1", "--store", str(tmp_path / "store")])
