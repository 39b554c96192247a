"""Episode memory: bounded, most recent, found again though damaged."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from organism.tasks.streams import damage
from server.episodes import Episode, Episodes


def lived(chunks: list[bytes], max_chunks: int = 100, max_bytes: int = 10_000) -> Episodes:
    """A memory of chunks that were lived one after the other, at offsets from 0."""
    return remembered(
        [Episode(chunk, offset) for offset, chunk in enumerate(chunks)], max_chunks, max_bytes
    )


def remembered(found: list[Episode], max_chunks: int, max_bytes: int) -> Episodes:
    """A memory to which these were added in one go."""
    episodes = Episodes(max_chunks, max_bytes)
    ends = np.cumsum([len(e.chunk) for e in found], dtype=np.int64)
    spans = np.stack([ends - [len(e.chunk) for e in found], ends], axis=1).astype(np.int64)
    offsets = np.array([e.offset for e in found], np.int64)
    episodes.add(b"".join(e.chunk for e in found), spans, offsets)
    return episodes


@given(
    st.lists(st.binary(min_size=1, max_size=6), max_size=40),
    st.integers(1, 8),
    st.integers(1, 40),
)
def test_the_most_recent_distinct_chunks_are_kept(
    chunks: list[bytes], max_chunks: int, max_bytes: int
) -> None:
    """As an ordered map would: latest occurrence counts, oldest give way, both bounds hold."""
    expected: dict[bytes, int] = {}
    for offset, chunk in enumerate(chunks):
        if len(chunk) > max_bytes:
            continue
        expected.pop(chunk, None)
        while len(expected) == max_chunks or sum(map(len, expected)) + len(chunk) > max_bytes:
            del expected[next(iter(expected))]
        expected[chunk] = offset
    episodes = lived(chunks, max_chunks, max_bytes)
    assert [(e.chunk, e.offset) for e in episodes.all()] == list(expected.items())


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=20))
def test_memory_is_restored_by_living_it_again(chunks: list[bytes]) -> None:
    """What ``all`` gives, added to an empty memory, is the same memory."""
    episodes = lived(chunks)
    again = remembered(episodes.all(), 100, 10_000)
    assert again.all() == episodes.all()
    assert again.search(chunks[0], 5) == episodes.search(chunks[0], 5)


def test_an_exact_cue_finds_its_latest_occurrence() -> None:
    """Similarity 1, at the last offset."""
    best = lived([b"one line", b"other", b"one line"]).search(b"one line", 3)[0]
    assert (best.episode.offset, best.similarity) == (2, 1.0)


def test_damaged_cues_find_their_line() -> None:
    """Ten percent of the bytes replaced: the line is first in nineteen cases of twenty."""
    rng = random.Random(0)
    words = [bytes(rng.choices(b"etaoinshr", k=6)) for _ in range(60)]
    lines = [b" ".join(rng.choices(words, k=8)) for _ in range(400)]
    episodes = lived(lines, 1000, 10**6)
    found = [episodes.search(damage(line, 0.1, rng), 1)[0].episode.chunk for line in lines]
    assert sum(a == b for a, b in zip(found, lines, strict=True)) >= 380


@pytest.mark.parametrize("cut", [slice(0, 30), slice(12, 42), slice(25, 55)])
def test_a_part_of_a_line_finds_a_line_that_contains_it(cut: slice) -> None:
    """First, middle and last half: before shorter lines that look more like it as a whole."""
    rng = random.Random(1)
    words = [bytes(rng.choices(b"etaoinshr", k=6)) for _ in range(60)]
    lines = [b" ".join(rng.choices(words, k=8)) for _ in range(200)]
    short = [b" ".join(rng.choices(words, k=4)) for _ in range(200)]
    episodes = lived([*lines, *short], 1000, 10**6)
    for line in lines:
        assert line[cut] in episodes.search(line[cut], 1)[0].episode.chunk


def test_the_cue_itself_comes_first() -> None:
    """Before lines that contain it."""
    episodes = lived([b"disk full", b"disk full on /dev/sda", b"warning: disk full"])
    assert episodes.search(b"disk full", 3)[0].episode.chunk == b"disk full"


def test_inserted_deleted_and_swapped_bytes() -> None:
    """Edits cost one each."""
    episodes = lived([b"connection closed by peer", b"connection opened by host"])
    for cue in (
        b"conection closed by peer",
        b"connecttion closed by peer",
        b"conenction closed by peer",
    ):
        found = episodes.search(cue, 1)[0]
        assert found.episode.chunk == b"connection closed by peer"
        assert found.similarity > 0.95


def test_zero_bytes_and_invalid_utf8_are_ordinary() -> None:
    """Found like any others."""
    chunks = [b"\x00" * 9, b"\xff\xfe\x00\x01\x80\x81", b"\x00\xff" * 5]
    episodes = lived(chunks)
    for chunk in chunks:
        assert episodes.search(chunk, 1)[0].episode.chunk == chunk
        assert episodes.search(chunk[:-1] + b"x", 1)[0].episode.chunk == chunk


def test_everything_lived_is_a_candidate() -> None:
    """Few chunks in a large memory: none of them is outranked by an empty place."""
    chunks = [b"one", b"something else", b"zebra crossing", b"\x00\xff"]
    found = lived(chunks, 1000).search(b"quite different", 8)
    assert {f.episode.chunk for f in found} == set(chunks)


def test_an_empty_memory_finds_nothing() -> None:
    """And does not invent a match."""
    assert lived([]).search(b"anything", 5) == []


def test_a_chunk_larger_than_the_memory_is_not_kept() -> None:
    """It does not push everything else out."""
    assert [e.chunk for e in lived([b"small", b"x" * 50], 10, 20).all()] == [b"small"]


def test_as_many_matches_as_asked_for() -> None:
    """Most similar first; the rest is left out."""
    found = lived([b"line %d" % i for i in range(30)]).search(b"line 7", 4)
    assert len(found) == 4
    assert [f.similarity for f in found] == sorted((f.similarity for f in found), reverse=True)


def test_what_gives_way_within_a_message_leaves_no_place_behind() -> None:
    """Chunks placed and forgotten together are no candidates: the one that is left is found."""
    short = [b"user %d logged in" % i for i in range(300)]
    episodes = lived([*short, b"x" * 9_990], 1000, 10_000)
    assert [e.chunk for e in episodes.all()] == [b"x" * 9_990]
    found = episodes.search(b"user 7 logged in", 3)
    assert [f.episode.chunk for f in found] == [b"x" * 9_990]


def test_offsets_stay_with_their_chunks_in_long_messages() -> None:
    """Beyond what is added at once."""
    chunks = [b"%d" % i for i in range(1500)]
    assert [e.offset for e in lived(chunks, 2000).all()] == list(range(1500))
