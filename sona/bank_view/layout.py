"""Where each pattern is on the map, how large, and which have room for a text. All in the frame's units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sona.bank_view.words import like
from sona.excerpt import excerpt
from sona.patterns import Pattern

WIDTH, HEIGHT, LOWEST = 960.0, 560.0, 220.0
"""Of the frame; it is lower, down to the third, where its discs need no more."""
LARGEST, SMALLEST = 46.0, 3.5
"""Radii."""
FILLED = 0.14
"""Share of the frame that all discs together cover at most."""
MARGIN = 16.0
MOST_LABELS, MOST_TRIED, LABEL_CHARACTERS = 40, 200, 30
"""Labels, discs that are looked at for one, and characters of each."""
EM = 11.0
"""Height of a label's letters."""
LETTER = 0.56
"""Width of a letter in a sans-serif typeface, as a share of that; of a Chinese one it is all."""
NAMED_FROM = 12.0
"""Radius of a disc that has room for its pattern's id."""
FLAT = 1e-6
"""A direction whose singular value is no larger a share of the first one's is rounding."""

Floats = npt.NDArray[np.float64]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Spot:
    """A pattern's disc. ``y`` grows downwards, as on a screen."""

    pattern: Pattern
    x: float
    y: float
    radius: float

    def meets(self, box: Box) -> bool:
        """Whether some of it is in the box."""
        dx = self.x - min(max(self.x, box.left), box.right)
        dy = self.y - min(max(self.y, box.top), box.bottom)
        return math.hypot(dx, dy) < self.radius


class Box(NamedTuple):
    """Where a text is."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether they have some room in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


class Label(NamedTuple):
    """A text. It begins at ``x``, has it in its middle, or ends there; ``y`` is its baseline."""

    x: float
    y: float
    anchor: Anchor
    text: str

    @property
    def box(self) -> Box:
        """About the room that it takes."""
        width = text_width(self.text)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return Box(left, self.y - EM * 0.85, left + width, self.y + EM * 0.3)


@dataclass(frozen=True)
class Layout:
    """The whole map."""

    spots: tuple[Spot, ...]
    """Largest first, so that no small one is hidden."""
    labels: tuple[Label, ...]
    """Beside discs."""
    names: Mapping[str, Label]
    """In discs, by the patterns' ids."""
    explained: float
    """Share of the centroids' variance that lies in the plane: the rest is not seen. 1 where there is none."""
    height: float
    """Of the frame."""


def lay_out(patterns: Sequence[Pattern]) -> Layout:
    """The map of ``patterns``, whose centroids are of one width: the same for the same ones, whatever their order."""
    ordered = sorted(patterns, key=lambda one: (-one.count, one.id))
    if not ordered:
        return Layout((), (), {}, 1.0, LOWEST)
    points, explained = plane(np.stack([one.vector() for one in ordered]).astype(np.float64))
    counts = np.asarray([one.count for one in ordered], dtype=np.float64)
    radii = radii_of(counts)
    places, height = _framed(points, float(radii.max()))
    spots = tuple(
        Spot(one, float(x), float(y), float(r)) for one, (x, y), r in zip(ordered, places, radii, strict=True)
    )
    return Layout(spots, tuple(_labels(spots, height)), _names(spots), explained, height)


def plane(centroids: Floats) -> tuple[Floats, float]:
    """The principal components (Pearson 1901) of ``centroids`` (n, width).

    Returns:
        (n, 2) places, and the share of the variance that is in them. Of each direction the largest component is
        positive, so that the map of the next cycle is not a mirror image of this one's.
    """
    centred = centroids - centroids.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    if values[0] <= FLAT * max(float(np.abs(centroids).max()), FLAT):
        return np.zeros((len(centroids), 2)), 1.0
    used = directions[:2][values[:2] > FLAT * values[0]]
    signs = np.sign(used[np.arange(len(used)), np.abs(used).argmax(1)])
    points = np.zeros((len(centroids), 2))
    points[:, : len(used)] = centred @ (used * signs[:, None]).T
    return points, float((values[:2] ** 2).sum() / (values**2).sum())


def radii_of(counts: Floats) -> Floats:
    """(n,) radii of discs whose areas are as ``counts`` (n,): see :data:`LARGEST`, :data:`SMALLEST`, :data:`FILLED`."""
    shares = counts / max(float(counts.max()), 1.0)
    largest = min(LARGEST, math.sqrt(FILLED * WIDTH * HEIGHT / (math.pi * max(float(shares.sum()), 1.0))))
    return np.maximum(largest * np.sqrt(shares), SMALLEST)


def _framed(points: Floats, largest: float) -> tuple[Floats, float]:
    """``points`` (n, 2) moved and scaled, both directions alike, so that discs of the radius ``largest`` are in the
    frame; and how high that is.
    """
    border = 2 * (largest + MARGIN)
    low, high = points.min(0), points.max(0)
    ratios = [
        space / size for space, size in zip((WIDTH - border, HEIGHT - border), high - low, strict=True) if size > 0
    ]
    scale = min(ratios) if ratios else 1.0
    height = max(LOWEST, float(high[1] - low[1]) * scale + border)
    middle = np.array([WIDTH / 2, height / 2])
    framed: Floats = (points - (low + high) / 2) * np.array([scale, -scale]) + middle
    return framed, height


def text_width(text: str) -> float:
    """About how wide a label is."""
    return sum(EM * (1.0 if ord(character) > 0x2E7F else LETTER) for character in text)


def _labels(spots: Sequence[Spot], height: float) -> list[Label]:
    """Beside the largest discs, as far as there is room, what their patterns are like."""
    taken: list[Box] = []
    labels: list[Label] = []
    for spot in spots[:MOST_TRIED]:
        text = like(spot.pattern, LABEL_CHARACTERS) or excerpt(spot.pattern.id, LABEL_CHARACTERS)
        for label in _candidates(spot, text):
            box = label.box
            inside = box.left > 2 and box.right < WIDTH - 2 and box.top > 2 and box.bottom < height - 2
            if inside and not any(map(box.meets, taken)) and not any(other.meets(box) for other in spots):
                taken.append(box)
                labels.append(label)
                break
        if len(labels) == MOST_LABELS:
            break
    return labels


def _names(spots: Sequence[Spot]) -> dict[str, Label]:
    """In the discs that have room for it, and no smaller disc before it, their patterns' ids."""
    names: dict[str, Label] = {}
    for place, spot in enumerate(spots):
        if spot.radius < NAMED_FROM:
            break
        name = Label(spot.x, spot.y + EM * 0.35, "middle", excerpt(spot.pattern.id, 12))
        if text_width(name.text) < 1.6 * spot.radius and not any(other.meets(name.box) for other in spots[place + 1 :]):
            names[spot.pattern.id] = name
    return names


def _candidates(spot: Spot, text: str) -> list[Label]:
    aside, middle = spot.radius + 5, spot.y + EM * 0.35
    return [
        Label(spot.x + aside, middle, "start", text),
        Label(spot.x - aside, middle, "end", text),
        Label(spot.x, spot.y + aside + EM * 0.8, "middle", text),
        Label(spot.x, spot.y - aside - EM * 0.1, "middle", text),
    ]
