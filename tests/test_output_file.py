"""A file that a command writes where the user says."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sona.errors import InvalidInputError
from sona.output_file import write_file


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """No file gets larger, as on a full disk; the errno is another, the place where it is met is the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with room_for(1000), pytest.raises(InvalidInputError, match="free space, or name a file on another disk"):
        write_file(tmp_path / "page.html", b"x" * 5000)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_bytes(b"before")
    with room_for(1000), pytest.raises(InvalidInputError, match=r"page\.html"):
        write_file(page, b"x" * 5000)
    assert page.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [page]


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path: Path) -> None:
    page, link, pipe = tmp_path / "page.html", tmp_path / "link", tmp_path / "pipe"
    page.write_bytes(b"before")
    link.symlink_to(page)
    write_file(link, b"now")
    assert (link.is_symlink(), page.read_bytes()) == (True, b"now")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_file(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
