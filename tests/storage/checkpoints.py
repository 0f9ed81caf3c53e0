"""Safetensors files for tests of the checkpoints, and what may happen to a model between two of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I8": 1, "BOOL": 1, "F8_E4M3": 1}


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def drawn(cls, dtype: str, shape: tuple[int, ...], seed: int) -> Tensor:
        size = WIDTHS[dtype] * math.prod(shape)
        return cls(dtype, shape, np.random.default_rng(seed).bytes(size))

    def touched(self, places: list[int]) -> Tensor:
        """With a bit flipped in these bytes."""
        data = bytearray(self.data)
        for place in places:
            data[place % len(data)] ^= 1
        return replace(self, data=bytes(data))


Model = dict[str, Tensor]


def file_of(model: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, padding: int = 0) -> bytes:
    """By hand, in the order of the mapping, which the library would choose for itself."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    at = 0
    for name, tensor in model.items():
        offsets = [at, at + len(tensor.data)]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        at = offsets[1]
    text = json.dumps(header).encode() + b" " * padding
    return len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in model.values())


DTYPES = st.sampled_from(sorted(WIDTHS))
SHAPES = st.one_of(
    st.just(()), st.tuples(st.integers(0, 5)), st.tuples(st.integers(1, 60), st.sampled_from([1, 64, 200]))
)
TENSORS = st.builds(Tensor.drawn, DTYPES, SHAPES, st.integers(0, 1000))
NAMES = st.sampled_from(["a", "b.weight", "ü", "layers.0.q", "layers.1.q", ""])
MODELS = st.dictionaries(NAMES, TENSORS, max_size=4)


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """Two to seven states of a model, each after some changes to the one before, as files."""
    model = draw(MODELS)
    files = [file_of(model)]
    for _ in range(draw(st.integers(1, 6))):
        for _ in range(draw(st.integers(0, 3))):
            model = draw(_changed(model))
        metadata = draw(st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=20), max_size=2))
        files.append(file_of(model, metadata, draw(st.sampled_from([0, 1, 7]))))
    return files


@st.composite
def _changed(draw: st.DrawFn, model: Model) -> Model:
    new_name, new_tensor = draw(NAMES), draw(TENSORS)
    if not model:
        return {new_name: new_tensor}
    name, other = draw(st.sampled_from(sorted(model))), draw(st.sampled_from(sorted(model)))
    tensor, rest = model[name], {key: one for key, one in model.items() if key != name}
    places = draw(st.lists(st.integers(0, 100_000), max_size=4)) if tensor.data else []
    alike = sorted(dtype for dtype, width in WIDTHS.items() if width == WIDTHS[tensor.dtype])
    changes: list[Model] = [
        {**model, name: tensor.touched(places)},
        {**model, new_name: new_tensor},
        {**model, name: new_tensor},
        rest,
        {**rest, new_name: tensor},  # renamed
        {name: tensor, **rest},  # moved to the front
        {**model, name: model[other], other: tensor},
        {**model, name: replace(tensor, shape=(1, *tensor.shape, 1))},
        {**model, name: replace(tensor, dtype=draw(st.sampled_from(alike)))},  # the same bytes, said to be another type
    ]
    return draw(st.sampled_from(changes))
