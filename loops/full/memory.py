"""How much memory this machine, or the container that the process is in, has left."""

from __future__ import annotations

from pathlib import Path

_GROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use and details of a control group, in its second and first form
(https://docs.kernel.org/admin-guide/cgroup-v2.html).
"""
_CACHE = ("inactive_file", "total_inactive_file")
"""What counts as used there, and is given back when it is needed."""


def available_bytes(root: Path = Path("/")) -> int | None:
    """What can be taken without swapping: the kernel's own estimate, or what the control group leaves where that is
    less; None where neither can be read.
    """
    found = [_of_machine(root), *(_of_group(root, *names) for names in _GROUPS)]
    known = [one for one in found if one is not None]
    return min(known) if known else None


def _of_machine(root: Path) -> int | None:
    fields = _fields(root / "proc/meminfo")
    return fields["MemAvailable:"] * 1024 if "MemAvailable:" in fields else None


def _of_group(root: Path, limit: str, used: str, details: str) -> int | None:
    try:
        most, now = int((root / limit).read_text()), int((root / used).read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    told = _fields(root / details)
    return max(0, most - now + next((told[name] for name in _CACHE if name in told), 0))


def _fields(path: Path) -> dict[str, int]:
    """The whole numbers behind names, of lines like ``MemFree: 123 kB``."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
