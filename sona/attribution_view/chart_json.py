"""A chart for a program."""

from __future__ import annotations

import math
from typing import Any

from sona.attribution_view.chart import Chart, Line


def as_builtins(chart: Chart) -> dict[str, Any]:
    """All of it, to become JSON; None where there is no score."""
    return {
        "method": chart.method,
        "unit": chart.unit,
        "partial": chart.note,
        "memories": [{"key": line.key, "text": line.text, **_line(chart, line)} for line in chart.lines],
        "all_at_once": None if chart.together is None else _line(chart, chart.together),
        "responses": _responses(chart),
        "warnings": [
            {"response": chart.number_of(one.response), "together": one.stripped_nats, "single": one.single_nats}
            for one in chart.warnings
        ],
        "heaviest": [
            {"key": one.key, "weight": one.weight, "responses": [chart.columns[at].number for at, _ in one.responses]}
            for one in chart.heaviest()
        ],
    }


def _line(chart: Chart, line: Line) -> dict[str, Any]:
    figures = {"weight": _known(line.weight), "per_token": _known(chart.per_token(line))}
    return {**figures, "values": [_known(value) for value in line.nats.tolist()], "failure": line.failure}


def _responses(chart: Chart) -> list[dict[str, Any]]:
    return [
        {
            "number": column.number,
            "segment": column.index,
            "tokens": column.tokens,
            "from_memories": _known(nats),
            "noise_floor": floor,
            "text": column.text,
        }
        for column, nats, floor in zip(chart.columns, chart.dependence.tolist(), chart.floors.tolist(), strict=True)
    ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
