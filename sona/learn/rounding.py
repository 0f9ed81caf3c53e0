"""Weights in bfloat16 that lose no small step.

A bfloat16 number has 8 significant bits, so beside a weight of .02 a step of 1e-5 is less than half the distance to the
next one, and rounded to nearest it is gone: 50 such steps on weights of N(0, .02²) leave 17 % of the way. What keeps
them is a float32 copy of each weight, 4 bytes a weight more, or rounding up or down by chance, in proportion.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sona.errors import InvalidInputError

Rounding = Literal["masters", "stochastic", "nearest"]
"""How an update reaches weights of half precision: through float32 masters, by chance, or rounded to nearest, which
loses what is small. Weights of float32 are what they are in each."""

_LOST_BITS = 16  # of a float32's 32, which a bfloat16 has not


def stochastically_rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """One of the two bfloat16 numbers around each value, drawn so that the mean is the value.

    With x between its neighbours a < b, b comes with probability (x − a) / (b − a) (Gupta et al. 2015,
    arXiv:1502.02551, §2.1). The bits of a float32 are those of the bfloat16 nearer to zero and 16 more, which lie
    evenly between the two: a random 16-bit number is added, and what carries over is kept. So the mean is exact, but
    for values beyond the largest bfloat16, which may become infinite. What bfloat16 can hold stays, and so do
    infinities and NaN.

    Args:
        values: any shape, float32.
        generator: on the values' device; the only source of chance.

    Returns:
        A new tensor of the same shape, bfloat16.

    Raises:
        InvalidInputError: values of another precision.
    """
    if values.dtype != torch.float32:
        raise InvalidInputError(f"stochastic rounding: values are {values.dtype}; give torch.float32")
    bits = values.contiguous().view(torch.int32)
    chance = torch.randint(1 << _LOST_BITS, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    kept = (bits + chance) & -(1 << _LOST_BITS)  # the sign is a bit of its own
    return torch.where(torch.isfinite(values), kept.view(torch.float32), values).to(torch.bfloat16)
