"""What is free is the machine's or the container's, whichever is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from sona.loops.full.memory import available_bytes

GIB = 1 << 30


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 8 * GIB), (str(6 * GIB), 3 * GIB), (str(64 * GIB), 8 * GIB), (str(2 * GIB), 0)],
    ids=["none", "less", "more", "beyond"],
)
def test_the_smaller_of_machine_and_group_counts(tmp_path: Path, limit: str, expected: int) -> None:
    write(tmp_path, proc__meminfo=f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    write(tmp_path, sys__fs__cgroup__memory_dot_max=limit, sys__fs__cgroup__memory_dot_current=str(4 * GIB))
    write(tmp_path, sys__fs__cgroup__memory_dot_stat=f"anon 1\ninactive_file {GIB}\n")
    assert available_bytes(tmp_path) == expected


def test_where_nothing_tells_nothing_is_known(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
