"""A picture of accuracies: time down, domains or tasks across, a panel a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_matrices(
    figure: Figure,
    panels: Mapping[str, Sequence[Sequence[float]]],
    columns: Sequence[str],
    rows_are: str = "cycle",
) -> None:
    """Draw one panel a matrix (rows, columns) of shares in [0, 1], each with its numbers in it."""
    heights = [len(rows) for rows in panels.values()]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        shares = np.asarray(rows)
        image = axis.imshow(shares, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_yticks(range(len(shares)), [str(row + 1) for row in range(len(shares))])
        axis.set_xticks(range(len(columns)), columns)
        axis.set_ylabel(rows_are)
        for (row, column), share in np.ndenumerate(shares):
            shade = "black" if share > 0.6 else "white"  # where viridis turns bright
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", color=shade, fontsize=7)
    figure.colorbar(image, ax=axes, label="accuracy", shrink=0.6)
