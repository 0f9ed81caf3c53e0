"""The colours of a value on either side of zero: blue above, orange below, and none within the noise."""

from __future__ import annotations

import math

Rgb = tuple[int, int, int]
ABOVE: Rgb = (33, 102, 172)
BELOW: Rgb = (179, 88, 6)
"""sRGB. Blue and orange stay apart for the three kinds of colour blindness, and white text can be read on both."""
FAINTEST = 0.14
"""Opacity of what is just above the noise, so that it is seen to be no noise."""
DARK = 0.7
"""Opacity from which a text on it has to be white."""


def share_of(nats: float, floor: float, most: float) -> float:
    """Of the scale from -1 to 1: the square root, signed, so that small effects are seen beside a large one; 0 within
    the noise.
    """
    if abs(nats) <= floor or most <= 0.0:
        return 0.0
    return math.copysign(math.sqrt(min(1.0, abs(nats) / most)), nats)


def hue(share: float) -> Rgb:
    """Without its strength."""
    return ABOVE if share > 0 else BELOW


def opacity(share: float) -> float:
    """How strongly it covers what is under it, from 0 to 1."""
    return 0.0 if share == 0 else FAINTEST + (1.0 - FAINTEST) * abs(share)


def blended(share: float, ground: Rgb) -> Rgb:
    """The colour where it lies on ``ground``."""
    strength = opacity(share)
    red, green, blue = (round(a * strength + b * (1.0 - strength)) for a, b in zip(hue(share), ground, strict=True))
    return red, green, blue


def as_hex(colour: Rgb) -> str:
    """As ``#rrggbb``."""
    return "#" + "".join(f"{value:02x}" for value in colour)


def is_dark(share: float) -> bool:
    """Whether a text on it has to be white."""
    return opacity(share) > DARK
