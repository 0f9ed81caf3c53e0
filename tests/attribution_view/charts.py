"""Charts of given values."""

from __future__ import annotations

import numpy as np

from sona.attribution_view.chart import Chart, Column, Line

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e $x$"
NOISE = 0.25


def chart(*rows: tuple[str, list[float]], failures: dict[str, str] | None = None, note: str = "") -> Chart:
    """Memories by their keys with their nats; infinity: the memory comes after the response."""
    count = len(rows[0][1])
    columns = tuple(Column(at + 1, 10 + at, f"answer {at} {HOSTILE}", at + 2) for at in range(count))
    lines = []
    for key, values in rows:
        nats = np.asarray(values, dtype=np.float64)
        before = ~np.isinf(nats)
        lines.append(Line(key, f"text of {key}", np.where(before, nats, 0.0), before, (failures or {}).get(key, "")))
    return Chart("loo", "nats", columns, tuple(lines), None, np.full(count, NOISE), note=note)
