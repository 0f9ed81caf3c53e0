"""What bench_micro compares when it times whole requests."""

from __future__ import annotations

import pytest

from benchmarks.micro import cost


@pytest.mark.parametrize(("known", "embedded"), [(True, 1), (False, 2)])
def test_a_new_prompt_is_embedded_and_a_known_one_is_not(
    known: bool, embedded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    rows = cost._ForAll.rows

    def counted(self: cost._ForAll, *arguments: object) -> object:
        passes.append(arguments[2].tobytes())  # type: ignore[attr-defined]
        return rows(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cost, "WARM_UP", 0)
    monkeypatch.setattr(cost._ForAll, "rows", counted)
    assert cost.served_over_plain(2, known=known) > 0
    assert len(passes) == 2, "half of the requests have fast weights"
    assert len(set(passes)) == embedded
