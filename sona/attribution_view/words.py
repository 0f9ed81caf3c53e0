"""What a chart's figures are called: the same in a terminal and on a page."""

from __future__ import annotations

import math

from sona.attribution.redundancy import Redundancy
from sona.attribution_view.chart import Chart, Line
from sona.excerpt import excerpt

NOISE, NO_SCORE, AFTER, HARM = "≈0", "?", "·", "≤0"
TOGETHER = "all at once"


def name(line: Line, most: int = 80) -> str:
    """A line's name, at most so many characters."""
    return excerpt(line.key, most) if line.key else TOGETHER


def nats(value: float) -> str:
    """A value with its sign and three figures, such as ``+1.25`` or ``-12.0``; below 0.1 to a thousandth."""
    size = abs(value)
    digits = 3 if size < 0.0995 else 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{value:+.{digits}f}"


def cell(chart: Chart, line: Line, place: int) -> str:
    """A line's value at a response: see :data:`KEY`."""
    state = chart.state(line, place)
    return {"after": AFTER, "failed": NO_SCORE, "noise": NOISE}.get(state) or nats(float(line.nats[place]))


def weight(chart: Chart, line: Line) -> str:
    """A line's weight, without a sign."""
    value = line.weight
    if math.isnan(value):
        return NO_SCORE
    if chart.is_finding(line):
        return nats(value).lstrip("+")
    return HARM if bool((line.nats < -chart.floors).any()) else NOISE


def per_token(chart: Chart, line: Line) -> str:
    """The same for each token."""
    if math.isnan(line.weight):
        return NO_SCORE
    return f"{chart.per_token(line):.3f}" if chart.is_finding(line) else NOISE


def given(chart: Chart, place: int) -> str:
    """What memories gave to a response."""
    value = float(chart.dependence[place])
    if math.isnan(value):
        return NO_SCORE
    return NOISE if value <= chart.floors[place] else nats(value).lstrip("+")


def floor(chart: Chart) -> str:
    """How large the noise is."""
    low, high = f"{chart.floors.min(initial=chart.floor):.2g}", f"{chart.floor:.2g}"
    return high if low == high else f"{low} to {high}, by response"


def key(chart: Chart) -> str:
    """What the signs in a table mean."""
    return (
        f"{chart.unit}: above 0 it made the response likelier; {NOISE} within the noise ({floor(chart)}); "
        f"{AFTER} it comes after the response; {NO_SCORE} no score; a weight leaves out what is below 0, {HARM} is all "
        "of it"
    )


def warning(chart: Chart, one: Redundancy) -> str:
    """What leave-one-out can't see at a response."""
    number = chart.number_of(one.response)
    return (
        f"response {number}: all memories together give it {one.stripped_nats:.2f} nats, each by itself only "
        f"{one.single_nats:.2f} in sum. Some likely say the same, so that leaving out one changes little: "
        "--method ablate weighs them"
    )


def summary(chart: Chart) -> list[str]:
    """A line for each of the heaviest memories, with the responses that it changed most."""
    lines = []
    for one in chart.heaviest():
        where = ", ".join(f"{chart.columns[place].number} ({nats(value)})" for place, value in one.responses)
        lines.append(
            f"{excerpt(one.key, 40)}: {nats(one.weight).lstrip('+')}" + (f", of responses {where}" if where else "")
        )
    return lines
