"""The data that a call was given, under each embedding that it was given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.bank.embedding import Embedding, embeddings
from benchmarks.call import Call
from benchmarks.dataset import DataNeed


class Given(NamedTuple):
    """A folder of data under one embedding."""

    folder: Path
    embedding: str
    embed: Embedding
    is_first: bool
    """Whether it is the embedding of the figures whose key names none."""

    @property
    def data(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def name(self) -> str:
        """As a row of a table is headed."""
        return f"{self.data}, {self.embedding}"

    @property
    def key(self) -> str:
        """As a part of a result's key."""
        return f"{self.data}.{self.embedding}"


def given_data(call: Call, need: DataNeed, what: str) -> Iterator[Given]:
    """Every folder that ``need`` fits, under every embedding; a note on ``what`` where there is no such folder."""
    folders = [folder for folder in call.data if need.fits(folder)]
    if not folders:
        call.note(f"{what}: not measured, give --data DIR")
    named = embeddings(call.data) if folders else {}
    for folder in folders:
        for number, (embedding, embed) in enumerate(named.items()):
            given = Given(folder, embedding, embed, number == 0)
            call.progress(f"{what}: {given.name}")
            yield given
