"""The colours of a quality: from amber, useless, to deep blue, right."""

from __future__ import annotations

STOPS = ((253, 194, 62), (179, 185, 92), (85, 161, 150), (43, 116, 171), (38, 58, 128))
"""sRGB, evenly spaced. They grow darker all the way, by 9 to 20 of CIE L*, so that their order is seen without colour
too. Neighbours are 14 or more apart (CIE76) for the three kinds of colour blindness as Machado et al. (2009,
doi:10.1109/TVCG.2009.113) model them. No stop is grey: that is for what nobody has rated."""
UNRATED = "#9aa3ad"


def colour(quality: float | None) -> str:
    """Of a quality in [0, 1], as ``#rrggbb``; grey for None."""
    if quality is None:
        return UNRATED
    place = quality * (len(STOPS) - 1)
    low = min(int(place), len(STOPS) - 2)
    share = place - low
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(STOPS[low], STOPS[low + 1], strict=True))


def is_dark(quality: float | None) -> bool:
    """Whether a text on that one has to be white."""
    return quality is not None and quality > 0.65
