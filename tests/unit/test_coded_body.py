"""A body behind a content coding: undone however it was cut, within a limit, and never more than a piece ahead."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable
from itertools import pairwise

import brotli  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import ProxyError
from balancer.surfaces.coded_body import PIECE, CodedBody


class Pieces:
    """A client that sends these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._left = [piece for piece in pieces if piece]
        self.reads = 0

    async def read(self) -> bytes:
        self.reads += 1
        return self._left.pop(0) if self._left else b""


def bare(data: bytes) -> bytes:
    """Deflated without the zlib frame, as some clients do."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate, bare": bare,
    "br": lambda data: brotli.compress(data, quality=1),
}
ZEROES = st.integers(0, 3 * PIECE).map(bytes)


def coded(coding: str, source: Pieces, limit: int = 1 << 30) -> CodedBody:
    return CodedBody(source, coding.partition(",")[0], limit)


async def whole(body: CodedBody) -> bytes:
    pieces = []
    while piece := await body.read():
        assert len(piece) <= 2 * PIECE
        pieces.append(piece)
    assert await body.read() == b""  # again and again
    return b"".join(pieces)


def drive(body: CodedBody) -> bytes:
    """Run to the end without a loop: nothing here waits for anything."""
    running = whole(body)
    try:
        running.send(None)
    except StopIteration as end:
        done: bytes = end.value
        return done
    raise AssertionError("it waited")


@pytest.mark.parametrize("coding", PACK)
@given(data=st.one_of(st.binary(max_size=300), ZEROES), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_any_split_of_the_bytes_gives_the_same_body(coding: str, data: bytes, cuts: list[int]) -> None:
    packed = PACK[coding](data)
    places = [0, *sorted(min(cut, len(packed)) for cut in cuts), len(packed)]
    pieces = [packed[start:end] for start, end in pairwise(places)]
    assert drive(coded(coding, Pieces(*pieces))) == data


@pytest.mark.parametrize("coding", PACK)
def test_one_byte_at_a_time_is_enough(coding: str) -> None:
    data = b'{"model": "gpt-5.1", "messages": [' + b"x" * 1000 + b"]}"
    assert drive(coded(coding, Pieces(*(bytes([byte]) for byte in PACK[coding](data))))) == data


@pytest.mark.parametrize("coding", PACK)
@pytest.mark.parametrize("more", [-300, -1, 0, 1, 257, 258, 300])
def test_a_body_that_ends_where_a_piece_does_is_whole(coding: str, more: int) -> None:
    data = b"a" * (PIECE + more)
    assert drive(coded(coding, Pieces(PACK[coding](data)))) == data


@pytest.mark.parametrize("coding", PACK)
async def test_a_bomb_is_refused_as_soon_as_it_is_over_the_limit(coding: str) -> None:
    packed = PACK[coding](bytes(64 << 20))
    source = Pieces(*(packed[place : place + 64] for place in range(0, len(packed), 64)))
    body = coded(coding, source, limit=1 << 20)
    with pytest.raises(ProxyError) as refused:
        await whole(body)
    assert (refused.value.status, refused.value.code, refused.value.close) == (413, "request_too_large", True)
    assert source.reads < len(packed) / 64 / 2 + 3  # the rest was not even read


@pytest.mark.parametrize("coding", PACK)
async def test_a_body_of_just_the_limit_passes(coding: str) -> None:
    data = random.Random(7).randbytes(5000)
    assert await whole(coded(coding, Pieces(PACK[coding](data)), limit=5000)) == data
    with pytest.raises(ProxyError):
        await whole(coded(coding, Pieces(PACK[coding](data)), limit=4999))


@pytest.mark.parametrize("coding", PACK)
async def test_data_that_is_cut_is_no_body(coding: str) -> None:
    packed = PACK[coding](b"some text that is long enough" * 20)
    for end in (0, 1, 2, len(packed) // 2, len(packed) - 1):
        with pytest.raises(ProxyError) as refused:
            await whole(coded(coding, Pieces(packed[:end])))
        assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("coding", PACK)
async def test_data_behind_the_end_is_refused_wherever_it_comes(coding: str) -> None:
    packed = PACK[coding](b"some text")
    for pieces in ((packed + b"more",), (packed, b"more")):
        with pytest.raises(ProxyError) as refused:
            await whole(coded(coding, Pieces(*pieces)))
        assert refused.value.status == 400


@pytest.mark.parametrize("coding", ["gzip", "br"])
async def test_what_does_not_follow_its_coding_is_refused(coding: str) -> None:
    with pytest.raises(ProxyError) as refused:
        await whole(coded(coding, Pieces(b'{"model": "gpt-5.1"}')))
    assert refused.value.status == 400


@pytest.mark.parametrize("coding", ["zstd", "", "gzip;q=1", "identity, gzip"])
def test_a_coding_that_is_not_known_is_refused_at_once(coding: str) -> None:
    with pytest.raises(ProxyError) as refused:
        CodedBody(Pieces(), coding, 100)
    assert (refused.value.status, refused.value.code) == (415, "unsupported_encoding")
    assert "gzip" in refused.value.message


@pytest.mark.parametrize("coding", [" GZIP ", "gzip", "X-Gzip"])
async def test_codings_are_known_in_any_spelling(coding: str) -> None:
    assert await whole(CodedBody(Pieces(gzip.compress(b"x")), coding, 100)) == b"x"
