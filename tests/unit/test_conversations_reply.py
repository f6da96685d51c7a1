"""The mark at the end of a stream: found under any split of its bytes, and nowhere else."""

from __future__ import annotations

import pytest

from balancer.surfaces.conversations_reply import Marker

STREAMS = [
    (b'data: {"a":1}\n\n', b"data: [DONE]\n\n"),
    (b"", b"data:[DONE]\r\n\r\n: bye\n\n"),
    (b"data: {}\r\rd\ndata\n", b"data:  [DONE]"),
    (b'data: "\\ndata: [DONE]"\nxdata: [DONE]\ndata: [DON]\ndata: [', b""),
    (b"\n\nda", b""),
]


@pytest.mark.parametrize(("before", "behind"), STREAMS)
def test_all_before_the_mark_passes_and_the_mark_is_held_back(before: bytes, behind: bytes) -> None:
    whole = before + behind
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1):
            marker = Marker()
            passed = held = b""
            for piece in (whole[:first], whole[first:second], whole[second:]):
                found = marker.found
                passes, keeps = marker.feed(piece)
                if found:
                    held += passes
                else:
                    passed += passes
                    held += keeps
            assert marker.found is bool(behind)
            assert (passed + marker.end(), held) == (before, behind)


def test_what_cannot_become_the_mark_passes_at_once() -> None:
    marker = Marker()
    assert marker.feed(b"data: {") == (b"data: {", b"")
    assert marker.feed(b"}\n\nda") == (b"}\n\n", b"")
    assert marker.feed(b"ta: x") == (b"data: x", b"")
