"""The closed-form classifier: what it predicts, and what it would predict of a row that it had not seen."""

import numpy as np
import numpy.typing as npt
import pytest

from sona.bank.ridge import LEAST_DEVIATION, RIDGE, RidgeFit, fit
from sona.checks import Float32

Floats = npt.NDArray[np.float64]


def classes(width: int, counts: list[int], apart: float = 1.0, seed: int = 0) -> list[Float32]:
    rng = np.random.default_rng(seed)
    centres = apart * rng.normal(size=(len(counts), width))
    return [
        (centre + rng.normal(size=(count, width))).astype(np.float32)
        for centre, count in zip(centres, counts, strict=True)
    ]


def refit_without(parts: list[Float32]) -> Floats:
    """The slow reference for ``left_out``: for each row a ridge regression of its own on the other rows.

    As in :func:`fit` the rows keep the weights and the scale that they have with all of them.
    """
    x = np.concatenate(parts).astype(np.float64)
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    weight = np.asarray([len(x) / (len(parts) * len(parts[own])) for own in owner])
    mean = (weight[:, None] * x).sum(0) / weight.sum()
    deviation = np.sqrt((weight[:, None] * (x - mean) ** 2).sum(0) / weight.sum())
    z = np.hstack([(x - mean) / ((deviation + LEAST_DEVIATION) * np.sqrt(x.shape[1])), np.ones((len(x), 1))])
    y = np.where(owner[:, None] == np.arange(len(parts)), 1.0, -1.0)
    found = np.zeros_like(y)
    for row in range(len(x)):
        rest = np.arange(len(x)) != row
        a = (weight[rest, None] * z[rest]).T @ z[rest] + RIDGE * len(x) * np.eye(z.shape[1])
        found[row] = z[row] @ np.linalg.solve(a, (weight[rest, None] * z[rest]).T @ y[rest])
    return found


@pytest.mark.parametrize(("width", "counts"), [(4, [9, 5, 12]), (30, [9, 5, 12]), (25, [20, 6])])
def test_a_row_left_out_is_valued_as_by_a_fit_without_it(width: int, counts: list[int]) -> None:
    """Whether there are fewer columns than rows, more of them, or as many."""
    parts = classes(width, counts)
    np.testing.assert_allclose(fit(parts).left_out, refit_without(parts), atol=1e-5)


def right(found: RidgeFit, parts: list[Float32]) -> list[float]:
    return [float((found.values(part).argmax(1) == place).mean()) for place, part in enumerate(parts)]


def test_separable_classes_are_told_apart_on_rows_never_seen() -> None:
    everything = classes(16, [80, 80, 80, 80], apart=2.0)
    found = fit([part[:40] for part in everything])
    assert right(found, [part[40:] for part in everything]) == [1.0] * 4
    values = found.values(everything[0][40:])
    assert (values[:, 0] > 0).all()
    assert (values[:, 1:] < 0).all()


def test_each_class_counts_alike_however_many_rows_it_has() -> None:
    """Where classes overlap, a fit that counted rows would give everything to the larger one."""
    few, many = classes(3, [40, 2000], apart=0.4)
    shares = right(fit([few, many]), [few, many])
    assert abs(shares[0] - shares[1]) < 0.15
    repeated = fit([np.repeat(few, 5, axis=0), many])
    np.testing.assert_allclose(repeated.values(many), fit([few, many]).values(many), atol=1e-2)


def test_one_row_a_class_and_a_column_that_never_changes_are_no_trouble() -> None:
    one = np.asarray([[1.0, 3.0, 0.0]], np.float32)
    found = fit([one, -one, one * np.asarray([0, 1, 0], np.float32)])
    assert np.isfinite(found.left_out).all()
    assert np.isfinite(found.values(one)).all()
    assert found.values(one).argmax() == 0
    assert found.left_out.shape == (3, 3)
