"""Checkpoints come back byte for byte, damage is found, and a kill leaves the old one or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from sona.errors import (
    InvalidInputError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    UnknownIdError,
)
from sona.storage.blocks import BLOCK, SPAN, decode, encode
from sona.storage.compression import compress, decompress
from sona.storage.deltas import Deltas, Saved
from sona.storage.versions import DRAFT
from tests.processes import run
from tests.storage.checkpoints import Model, Tensor, file_of, histories

MODEL: Model = {
    "embed": Tensor.drawn("F32", (40, 64), 1),
    "layer.weight": Tensor.drawn("BF16", (64, 100), 2),
    "norm": Tensor.drawn("F32", (64,), 3),
}


def touched(model: Model, name: str, *places: int) -> Model:
    return {**model, name: model[name].touched(list(places))}


def restored(deltas: Deltas, number: int) -> bytes:
    target = deltas.folder / "restored.safetensors"
    deltas.restore(number, target)
    data = target.read_bytes()
    target.unlink()
    return data


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# What was saved comes back
@settings(max_examples=150, deadline=None)
@given(files=histories(), longest=st.integers(0, 4))
def test_every_checkpoint_comes_back_byte_for_byte(
    files: list[bytes], longest: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    deltas = Deltas(tmp_path_factory.mktemp("chain"), longest=longest)
    saved = [deltas.save(file) for file in files]
    assert deltas.numbers() == [one.number for one in saved] == list(range(1, len(files) + 1))
    for one, file in zip(saved, files, strict=True):
        assert restored(deltas, one.number) == file
        assert one.sha256 == hashlib.sha256(file).hexdigest()
        assert one.checkpoint_bytes == len(file)
        assert one.written_bytes == one.path.stat().st_size
        assert one.changed_blocks <= one.blocks


def test_files_of_torch_come_back_as_tensors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "half": torch.randn(300, 40, generator=generator).bfloat16(),
        "full": torch.randn(70, 33, generator=generator),
        "ids": torch.arange(10),
    }
    deltas = Deltas(tmp_path / "chain")
    deltas.save(save(weights))
    weights["half"] += 0.01
    weights["full"][3] = 7.0
    (tmp_path / "new.safetensors").write_bytes(save(weights, {"format": "pt"}))
    deltas.save(tmp_path / "new.safetensors")
    deltas.restore(2, tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(tensor, back[name]) for name, tensor in weights.items())


def test_a_tensor_of_several_spans_comes_back(tmp_path: Path) -> None:
    size = 2 * SPAN + 5 * BLOCK + 12
    old = {"big": Tensor("F32", (size // 4,), bytes(size))}
    new = touched(old, "big", 0, SPAN - 1, 2 * SPAN, size - 1)
    deltas = Deltas(tmp_path)
    deltas.save(file_of(old))
    saved = deltas.save(file_of(new))
    assert saved.changed_blocks == 4
    assert saved.blocks == size // BLOCK + 1
    assert restored(deltas, 2) == file_of(new)


def test_saving_the_same_twice_writes_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        deltas = Deltas(tmp_path / name)
        deltas.save(file_of(MODEL))
        deltas.save(file_of(touched(MODEL, "embed", 7)))
    files = [[path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("one", "two")]
    assert files[0] == files[1]


# What is compared
def test_only_changed_blocks_are_written(tmp_path: Path) -> None:
    deltas = Deltas(tmp_path)
    first = deltas.save(file_of(MODEL))
    second = deltas.save(file_of(touched(MODEL, "embed", 0, BLOCK - 1, 2 * BLOCK)))
    assert (first.is_snapshot, second.is_snapshot) == (True, False)
    assert second.changed_blocks == 2
    assert second.written_bytes < 600 < first.written_bytes


def test_a_longer_header_changes_no_block(tmp_path: Path) -> None:
    deltas = Deltas(tmp_path)
    deltas.save(file_of(MODEL))
    saved = deltas.save(file_of(MODEL, {"note": "x" * 1001}))
    assert not saved.is_snapshot
    assert saved.changed_blocks == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda model: dict(reversed(model.items())),
        lambda model: {"first": Tensor.drawn("I8", (3,), 9), **model},
        lambda model: {("renamed" if name == "embed" else name): one for name, one in model.items()},
        lambda model: {name: one for name, one in model.items() if name != "embed"},
        lambda model: {**model, "embed": Tensor("F32", (2560,), model["embed"].data)},
        lambda model: {**model, "copy": model["layer.weight"]},
    ],
    ids=["reordered", "added", "renamed", "removed", "reshaped", "copied"],
)
def test_what_stays_is_found_wherever_it_lies(change: Callable[[Model], Model], tmp_path: Path) -> None:
    deltas = Deltas(tmp_path)
    deltas.save(file_of(MODEL))
    saved = deltas.save(file_of(change(MODEL)))
    assert saved.changed_blocks <= 1  # of what was added
    assert restored(deltas, 2) == file_of(change(MODEL))


def test_what_has_nothing_in_common_is_a_snapshot(tmp_path: Path) -> None:
    deltas = Deltas(tmp_path)
    deltas.save(file_of(MODEL))
    saved = deltas.save(file_of({"other": Tensor.drawn("F32", (9, 9), 4)}))
    assert saved.is_snapshot
    assert deltas.prune(1) == [1]


# The chain
def test_a_chain_is_bounded(tmp_path: Path) -> None:
    deltas, model = Deltas(tmp_path, longest=3), MODEL
    kinds = []
    for place in range(10):
        model = touched(model, "embed", place)
        kinds.append("s" if deltas.save(file_of(model)).is_snapshot else "d")
    assert "".join(kinds) == "sdddsdddsd"


def test_a_snapshot_can_be_asked_for(tmp_path: Path) -> None:
    deltas = Deltas(tmp_path)
    deltas.save(file_of(MODEL))
    assert deltas.save(file_of(MODEL), snapshot=True).is_snapshot


def filled(folder: Path, count: int = 8, longest: int = 2) -> tuple[Deltas, list[bytes]]:
    deltas, model, files = Deltas(folder, longest=longest), MODEL, []
    for place in range(count):
        model = touched(model, "layer.weight", place)
        files.append(file_of(model))
        deltas.save(files[-1])
    return deltas, files


@pytest.mark.parametrize(("keep", "gone"), [(1, 6), (2, 6), (3, 3), (5, 3), (6, 0), (20, 0)])
def test_pruning_keeps_what_the_newest_need(keep: int, gone: int, tmp_path: Path) -> None:
    deltas, files = filled(tmp_path)  # snapshots at 1, 4 and 7
    assert deltas.prune(keep) == list(range(1, gone + 1))
    assert deltas.numbers() == list(range(gone + 1, 9))
    assert all(restored(deltas, number) == files[number - 1] for number in deltas.numbers())
    assert deltas.save(files[0]).number == 9


def test_pruning_that_is_cut_short_leaves_what_can_be_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas, files = filled(tmp_path)
    unlink, left = Path.unlink, [2]

    def failing(self: Path, missing_ok: bool = False) -> None:
        if self.suffix in (".delta", ".snapshot"):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EIO, "the disk failed")
        unlink(self, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", failing)
        with pytest.raises(StoreError):
            deltas.prune(1)
    assert deltas.numbers() == [1, 2, 3, 4, 7, 8]
    assert all(restored(deltas, number) == files[number - 1] for number in deltas.numbers())


def test_an_unknown_number_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnknownIdError, match="nothing was trained there yet"):
        Deltas(tmp_path / "nothing").restore(1, tmp_path / "x")
    deltas, _ = filled(tmp_path, 2)
    for number in (0, 3):
        with pytest.raises(UnknownIdError, match=f"checkpoint {number}"):
            deltas.restore(number, tmp_path / "x")


@pytest.mark.parametrize("call", [lambda folder: Deltas(folder, longest=-1), lambda folder: Deltas(folder).prune(0)])
def test_numbers_out_of_range_are_refused(call: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is allowed"):
        call(tmp_path)


# Damage
def small(folder: Path) -> tuple[Deltas, bytes]:
    """A snapshot and a delta of about 500 bytes each."""
    model: Model = {"w": Tensor.drawn("BF16", (8, 4), 1), "v": Tensor.drawn("F32", (3,), 2)}
    deltas = Deltas(folder)
    deltas.save(file_of(model))
    last = file_of(touched(model, "w", 3))
    deltas.save(last)
    return deltas, last


@pytest.mark.parametrize("name", ["00000001.snapshot", "00000002.delta"])
def test_every_flipped_byte_is_found(name: str, tmp_path: Path) -> None:
    deltas, last = small(tmp_path)
    path, target = tmp_path / name, tmp_path / "x.safetensors"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for mask in (1, 0x80, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            with pytest.raises(StoreCorruptError, match="damaged"):
                deltas.restore(2, target)
    path.write_bytes(whole)
    assert listed(tmp_path) == ["00000001.snapshot", "00000002.delta"]
    assert restored(deltas, 2) == last


@pytest.mark.parametrize("name", ["00000001.snapshot", "00000002.delta"])
def test_every_length_that_is_cut_or_too_long_is_found(name: str, tmp_path: Path) -> None:
    deltas, _ = small(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreCorruptError, match="damaged"):
            deltas.restore(2, tmp_path / "x")
    path.write_bytes(whole + b"\0")
    with pytest.raises(StoreCorruptError, match="damaged"):
        deltas.restore(2, tmp_path / "x")


def harmed(folder: Path, harm: Callable[[Path], object]) -> Deltas:
    deltas, _ = filled(folder, 3, longest=5)
    harm(folder)
    return deltas


def another_chain(folder: Path) -> Path:
    return filled(folder, 1)[0].save(file_of(touched(MODEL, "norm", 5))).path


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "00000001.snapshot").unlink(),
        lambda folder: (folder / "00000002.delta").unlink(),
        lambda folder: (folder / "00000002.delta").write_bytes((folder / "00000003.delta").read_bytes()),
        lambda folder: another_chain(folder / "other").replace(folder / "00000002.delta"),
        lambda folder: (folder / "00000002.delta").write_bytes(b""),
    ],
    ids=["no snapshot", "no delta", "another number", "another chain", "empty"],
)
def test_a_broken_chain_is_found_and_a_snapshot_begins_a_new_one(
    harm: Callable[[Path], object], tmp_path: Path
) -> None:
    deltas = harmed(tmp_path, harm)
    for call in (lambda: deltas.restore(3, tmp_path / "x"), lambda: deltas.save(file_of(MODEL))):
        with pytest.raises(StoreCorruptError, match="damaged"):
            call()
    assert not (tmp_path / "x").exists()
    deltas.save(file_of(MODEL), snapshot=True)
    assert restored(deltas, 4) == file_of(MODEL)


def test_a_link_is_no_checkpoint(tmp_path: Path) -> None:
    deltas, _ = small(tmp_path)
    (tmp_path / "00000002.delta").rename(tmp_path / "elsewhere")
    (tmp_path / "00000002.delta").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        deltas.restore(2, tmp_path / "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        (5).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{\xff",
        file_of(MODEL)[:-1],
        file_of(MODEL) + b"\0",
        file_of({"a": Tensor("F32", (3,), b"1234")}),
        file_of({"a": Tensor("F32", (-1,), b"1234")}),
        file_of(MODEL).replace(b'"shape": [64]', b'"shape": [63]'),
        file_of(MODEL).replace(b'"data_offsets": [0,', b'"data_offsets": [8,'),
        file_of({"a": Tensor("I8", (1,), b"1")}).replace(b"[0, 1]", b"[1, 0]"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="safetensors"):
        Deltas(tmp_path / "chain").save(data)
    assert not (tmp_path / "chain").exists()


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InvalidInputError, match="give a safetensors file"):
            Deltas(tmp_path / "chain").save(path)


def test_a_type_that_is_not_known_is_taken_as_bytes(tmp_path: Path) -> None:
    model = {"odd": Tensor("F4", (5, 3), b"12345678")}
    deltas = Deltas(tmp_path)
    deltas.save(file_of(model))
    deltas.save(file_of(touched(model, "odd", 3)))
    assert restored(deltas, 2) == file_of(touched(model, "odd", 3))


# The stored form
GOLDEN = Path(__file__).parent / "golden" / "checkpoints"


def golden_files() -> list[bytes]:
    model: Model = {
        "w": Tensor("F32", (2, 3), bytes(range(24))),
        "h": Tensor("BF16", (3000,), bytes(3000) + b"\x80\x3f" * 1500),
    }
    return [file_of(model), file_of(touched({**model, "new": Tensor("I8", (2,), b"ab")}, "h", 5000), {"step": "2"})]


def test_checkpoints_of_the_first_form_are_read(tmp_path: Path) -> None:
    """Its files are made once, by ``Deltas(GOLDEN).save`` of each; zstd may write other frames, but reads these."""
    deltas = Deltas(GOLDEN)
    assert listed(GOLDEN) == ["00000001.snapshot", "00000002.delta"]
    for number, file in enumerate(golden_files(), 1):
        deltas.restore(number, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == file


# A disk that fails
class Disk:
    """Stands between the checkpoints and the system: counts the calls that can fail, and makes one of them."""

    CALLS = ("open", "pread", "write", "fsync", "replace")

    def __init__(self, failing: int, number: int) -> None:
        self.seen = 0
        self._failing, self._number = failing, number

    def call(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **keys: Any) -> Any:
            self.seen += 1
            if self.seen == self._failing:
                raise OSError(self._number, os.strerror(self._number))
            return real(*args, **keys)

        return wrapped


@contextmanager
def failing_disk(failing: int, number: int) -> Iterator[Disk]:
    disk = Disk(failing, number)
    with pytest.MonkeyPatch.context() as patched:
        for name in Disk.CALLS:
            patched.setattr(os, name, disk.call(getattr(os, name)))
        yield disk


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StoreFullError), (errno.EROFS, StoreReadOnlyError), (errno.EIO, StoreError)],
)
def test_a_disk_that_fails_at_any_call_is_told_and_harms_nothing(
    number: int, kind: type[StoreError], tmp_path: Path
) -> None:
    old, new = file_of(MODEL), file_of(touched(MODEL, "embed", 1))
    counted = begun(tmp_path / "counted", old)
    with failing_disk(0, number) as disk:
        counted.save(new)
    assert disk.seen > 10
    for failing in range(1, disk.seen + 1):
        deltas = begun(tmp_path / str(failing), old)
        with failing_disk(failing, number), pytest.raises(kind):
            deltas.save(new)
        assert not [name for name in listed(deltas.folder) if name.startswith(DRAFT)]
        for place, name in enumerate(listed(deltas.folder), 1):
            assert restored(deltas, place) == [old, new][place - 1], name
        deltas.save(new)  # what came between is forgotten
        assert restored(deltas, max(deltas.numbers())) == new


def begun(folder: Path, old: bytes) -> Deltas:
    deltas = Deltas(folder)
    deltas.save(old)
    return deltas


def test_a_restore_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    deltas, last = small(tmp_path / "chain")
    target = tmp_path / "out" / "model.safetensors"
    target.parent.mkdir()
    target.write_bytes(b"served")
    with failing_disk(0, errno.ENOSPC) as disk:
        deltas.restore(2, target)
    assert target.read_bytes() == last
    for failing in range(1, disk.seen + 1):
        target.write_bytes(b"served")
        with failing_disk(failing, errno.ENOSPC), pytest.raises(StoreFullError):
            deltas.restore(2, target)
        assert target.read_bytes() in (b"served", last)
        assert listed(target.parent) == ["model.safetensors"]


KILLED = """
import os, sys
from pathlib import Path
from sona.storage.deltas import Deltas
from tests.storage.test_deltas import MODEL, file_of, listed, restored, touched

ROOT, WHAT = Path(sys.argv[1]), sys.argv[2]
FILES = [file_of(MODEL), file_of(touched(MODEL, "embed", 1)), file_of(touched(MODEL, "norm", 2))]
CALLS = ("open", "write", "fsync", "replace", "close", "unlink")

def die_at(number):
    seen = [0]
    def wrap(name, real):
        def wrapped(*args, **keys):
            seen[0] += 1
            if seen[0] == number:
                if name == "write":  # torn
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(9)
            return real(*args, **keys)
        return wrapped
    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))

def life(folder, number):
    child = os.fork()
    if child == 0:
        deltas = Deltas(folder, longest=1 if WHAT == "snapshot" else 5)
        die_at(number)
        deltas.save(FILES[2])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

number, kept, found = 0, 0, 0
while True:
    number += 1
    folder = ROOT / str(number)
    deltas = Deltas(folder)
    for file in FILES[:2]:
        deltas.save(file)
    code = life(folder, number)
    there = deltas.numbers()
    assert there in ([1, 2], [1, 2, 3]), there
    for one in there:
        assert restored(deltas, one) == FILES[one - 1]
    kept, found = kept + (there == [1, 2]), found + (there == [1, 2, 3])
    deltas.clean()
    assert len(listed(folder)) == len(there)
    if code == 0:
        break
    assert code == 9, code
    deltas.save(FILES[2])
    assert restored(deltas, max(deltas.numbers())) == FILES[2]
print(number, kept, found)
"""


@pytest.mark.parametrize("what", ["delta", "snapshot"])
def test_a_kill_at_any_call_leaves_the_old_one_or_the_new_one_whole(what: str, tmp_path: Path) -> None:
    number, kept, found = map(int, run(KILLED, tmp_path, what).split())
    assert number == kept + found > 15
    assert kept > 5
    assert found > 1  # after the rename it is there


def test_files_are_synced_before_they_get_their_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted(fd: int) -> None:
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def renamed(*args: Any) -> None:
        order.append("rename")
        replace(*args)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    Deltas(tmp_path / "deep" / "chain").save(file_of(MODEL))
    # first the folders that were made
    assert order == ["folder", "folder", "file", "rename", "folder"]


# Blocks
@settings(deadline=None)
@given(data=st.data(), width=st.sampled_from([1, 2, 4, 8]))
def test_blocks_come_back_from_what_changed(data: st.DataObject, width: int) -> None:
    size = width * data.draw(st.sampled_from([0, 1, 3, 511, 512, 513, 2048, 2500]))
    new = Tensor.drawn("I8", (size,), data.draw(st.integers(0, 100))).data
    old = data.draw(st.sampled_from([None, new, bytes(size)]))
    for place in data.draw(st.lists(st.integers(0, size - 1), max_size=3)) if size else []:
        new = new[:place] + bytes([new[place] ^ 0x55]) + new[place + 1 :]
    frame, changed = encode(old, new, width)
    assert decode(frame, old, size, width) == new
    before = bytes(size) if old is None else old
    differ = sum(before[at : at + BLOCK] != new[at : at + BLOCK] for at in range(0, size, BLOCK))
    assert changed == differ
    assert bool(frame) == bool(differ)


@pytest.mark.parametrize("size", [8, BLOCK, 9 * BLOCK])
def test_a_frame_of_other_sizes_is_found(size: int) -> None:
    frame, _ = encode(None, b"\1" * (2 * BLOCK), 4)
    with pytest.raises(StoreCorruptError):
        decode(frame, None, size, 4)


def test_a_frame_that_tells_of_too_much_takes_no_memory() -> None:
    frame = compress(bytes(1 << 24))
    assert decompress(frame, 1 << 24) == bytes(1 << 24)
    for damaged, most in ((frame, (1 << 24) - 1), (b"", 10), (b"no frame", 10), (frame + b"x", 1 << 24)):
        with pytest.raises(StoreCorruptError):
            decompress(damaged, most)


def test_what_was_saved_tells_its_size(tmp_path: Path) -> None:
    saved: Saved = Deltas(tmp_path).save(file_of(MODEL))
    assert saved.blocks == 3 + 4 + 1
    assert saved.path == tmp_path / "00000001.snapshot"
