"""Query embeddings from word vectors."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.word_vectors import WordVectors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vectors = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float16)
    np.savez(tmp_path / "vectors.npz", words=np.array(["pay", "bill", "owe"]), vectors=vectors)
    return tmp_path


def test_embedding_is_the_mean_of_the_known_words(folder: Path) -> None:
    vector = WordVectors(folder).embed("Pay my BILL!")
    assert vector is not None
    assert vector.dtype == np.float32
    assert vector.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("text", ["", "unknown words", "pay owe"])
def test_text_without_direction_has_no_embedding(folder: Path, text: str) -> None:
    assert WordVectors(folder).embed(text) is None


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "vectors.npz", words=np.array(["a", None], dtype=object), vectors=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="allow_pickle"):
        WordVectors(tmp_path)
