"""Messages cross whole, whatever a socket does to them, and whatever is none is told."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.errors import LearnerError
from sona.loops import frames
from sona.loops.frames import HEADER, MARK, MORE, MOST_FRAME, WHOLE, Channel, EndOfMessagesError
from sona.loops.messages import KINDS, Answer, Begun, Commit, Logged, Publish, Stop, WriteState
from sona.ports import Claim
from sona.types import Record
from tests.storage.records import report

ENDS = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[ENDS]:
    """A channel, and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, KINDS)
    yield channel, theirs
    channel.close()
    theirs.close()


def bytes_of(message: Record) -> bytes:
    return b"".join(frames.frames(KINDS.index(type(message)), msgspec.msgpack.encode(message)))


MESSAGES = st.one_of(
    st.just(Begun()),
    st.builds(WriteState, name=st.text(), value=st.binary()),
    st.builds(Publish, draft=st.text(), version=st.text(), digest=st.text()),
    st.builds(Logged, logger=st.text(), level=st.integers(0, 50), text=st.text()),
    st.builds(Answer, drafts=st.lists(st.one_of(st.text(), st.dictionaries(st.text(), st.text()))).map(tuple)),
)


@given(messages=st.lists(MESSAGES, max_size=5), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_messages_arrive_as_they_were_sent_however_they_are_cut(messages: list[Record], cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    channel, data = Channel(ours, KINDS), b"".join(map(bytes_of, messages))
    got: list[Record] = []
    begin = 0
    for cut in [*sorted(cuts), len(data)]:
        theirs.sendall(data[begin:cut])
        begin = max(begin, cut)
        while (message := channel.receive(0.0)) is not None:
            got.append(message)
    assert got == messages
    channel.close()
    theirs.close()


def test_a_message_of_many_frames_arrives_whole(ends: ENDS) -> None:
    channel, theirs = ends
    claims = tuple(Claim(seq=n + 1, role="train", prompt_ids=bytes(100_000)) for n in range(40))
    sent = Commit(report=report(1), claims=claims, version=None)
    other = Channel(theirs, KINDS)
    sender = threading.Thread(target=other.send, args=[sent])
    sender.start()
    got = channel.receive()
    sender.join()
    assert len(bytes_of(sent)) > 3 * MOST_FRAME
    assert got == sent


def test_nothing_within_the_time_is_none(ends: ENDS) -> None:
    channel, theirs = ends
    theirs.sendall(bytes_of(Stop())[:-1])
    assert channel.receive(0.01) is None


def test_an_end_in_the_middle_of_a_message_says_so(ends: ENDS) -> None:
    channel, theirs = ends
    theirs.sendall(bytes_of(Stop()) + bytes_of(WriteState(name="a", value=b"b" * 100))[:20])
    theirs.shutdown(socket.SHUT_WR)
    assert channel.receive() == Stop()
    with pytest.raises(EndOfMessagesError, match="middle of a message"):
        channel.receive()


def test_an_end_between_two_messages_says_nothing(ends: ENDS) -> None:
    channel, theirs = ends
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(EndOfMessagesError, match=r"^$"):
        channel.receive()


PUBLISH = KINDS.index(Publish)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"Traceback (most recent call last)", "no frame of sona's: b'Traceback"),
        (HEADER.pack(MARK, len(KINDS), WHOLE, 0), "no frame"),
        (HEADER.pack(MARK, 0, 2, 0), "no frame"),
        (HEADER.pack(MARK, 0, WHOLE, MOST_FRAME + 1), "no frame"),
        (HEADER.pack(MARK, 1, MORE, 1) + b"a" + HEADER.pack(MARK, 2, WHOLE, 1) + b"b", "a frame of kind 2"),
        (HEADER.pack(MARK, PUBLISH, WHOLE, 1) + b"\xc1", "no Publish"),
        (HEADER.pack(MARK, PUBLISH, WHOLE, 1) + b"\x80", "no Publish: Object missing required field"),
        (b"\x80\x04\x95\x0b\x00\x00\x00", "no frame"),  # how a pickle begins
    ],
)
def test_what_is_no_frame_is_a_typed_error(ends: ENDS, data: bytes, told: str) -> None:
    channel, theirs = ends
    theirs.sendall(data.ljust(HEADER.size, b"\0"))
    with pytest.raises(LearnerError, match=told):
        channel.receive()


@given(data=st.binary(min_size=1, max_size=200))
def test_any_bytes_are_a_message_or_a_typed_error(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, KINDS)
    theirs.sendall(data)
    theirs.close()
    with suppress(LearnerError, EndOfMessagesError):
        while True:
            assert type(channel.receive()) in KINDS
    channel.close()


def test_a_message_without_an_end_is_bounded(ends: ENDS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MOST_MESSAGE", 10)
    channel, theirs = ends
    theirs.sendall((HEADER.pack(MARK, PUBLISH, MORE, 6) + b"abcdef") * 2)
    with pytest.raises(LearnerError, match="over 10 bytes"):
        channel.receive()
    with pytest.raises(LearnerError, match=r"of \d+ bytes; 10 are allowed"):
        channel.send(WriteState(name="name", value=b"0123456789"))


def test_the_header_is_what_its_description_says() -> None:
    assert bytes_of(Stop()) == b"sL" + struct.pack("<BBI", KINDS.index(Stop), 0, 1) + b"\x80"
