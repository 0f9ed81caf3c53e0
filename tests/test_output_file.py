"""A file that a command writes where the user says."""

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sona.errors import InvalidInputError
from sona.output_file import write_file

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_the_output_of_the_process_is_written_to_and_not_replaced(tmp_path: Path, name: str) -> None:
    work = f"print('before'); from sona.output_file import *; write_file(Path({name!r}), b'page\\n'); print('after')"
    piped = subprocess.run([sys.executable, "-c", work], cwd=ROOT, capture_output=True, check=False)
    assert (piped.stdout, piped.stderr) == (b"before\npage\nafter\n", b"")
    shell = tmp_path / "shell.txt"
    with shell.open("wb") as opened:
        opened.write(b"first\n")
        opened.flush()
        subprocess.run([sys.executable, "-c", work], cwd=ROOT, stdout=opened, check=True)
        opened.write(b"last\n")
    assert shell.read_bytes() == b"first\nbefore\npage\nafter\nlast\n"
    assert list(tmp_path.iterdir()) == [shell]


def test_a_file_that_others_may_not_read_stays_so(tmp_path: Path) -> None:
    page, new = tmp_path / "page.html", tmp_path / "new.html"
    page.write_bytes(b"before")
    for mode in (0o600, 0o664):
        page.chmod(mode)
        write_file(page, b"now")
        assert stat.S_IMODE(page.stat().st_mode) == mode
    write_file(new, b"now")
    assert stat.S_IMODE(new.stat().st_mode) & 0o400


def test_a_descriptor_that_is_not_open_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="Bad file descriptor"):
        write_file(Path("/dev/fd/987654"), b"x")
