"""Readers of the chat surface's stream as people write them: lines of requests, and parsers of server-sent events.

Each says the message of CLIENT_MESSAGE twice, first with `session_id: null` and then with the session that the answer named, and
finds CLIENT_SAID both times.
"""

from __future__ import annotations

import json
import os

import httpx
import httpx_sse
import requests
import sseclient
from telling import TOKEN, URL, call, equal, holds, line

STREAM = f"{URL}/chat/stream"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
MESSAGE, SAID = os.environ["CLIENT_MESSAGE"], os.environ["CLIENT_SAID"]
PATIENCE = 30.0


def _post(body):
    answer = requests.post(STREAM, json=body, headers=HEADERS, stream=True, timeout=PATIENCE)
    answer.raise_for_status()
    return answer


def lines_of_requests(body):
    with _post(body) as answer:
        for line in answer.iter_lines():
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: ").decode("utf-8"))


def lines_of_requests_decoded(body):
    with _post(body) as answer:
        answer.encoding = "utf-8"
        for line in answer.iter_lines(decode_unicode=True):
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def events_of_sseclient(body):
    with _post(body) as answer:
        for event in sseclient.SSEClient(answer).events():
            equal((event.event, event.id), ("message", None))
            yield json.loads(event.data)


def events_of_httpx_sse(body):
    with (
        httpx.Client(timeout=PATIENCE) as client,
        httpx_sse.connect_sse(client, "POST", STREAM, json=body, headers=HEADERS) as source,
    ):
        for event in source.iter_sse():
            equal((event.event, event.id), ("message", ""))
            yield event.json()


def turn(reader, session):
    """One message, read until `complete` and no further. Returns the session that the answer is of."""
    chunks = []
    for event in reader({"message": MESSAGE, "session_id": session}):
        said = event["data"]
        if event["type"] == "complete":
            break
        equal((event["type"], said["chunk_index"]), ("chunk", len(chunks)))
        chunks.append(said["content"])
    else:
        raise AssertionError("it ended without complete")
    holds(len(chunks) > 1, chunks)
    equal(said["total_chunks"], len(chunks))
    equal(("".join(chunks), said["full_content"]), (SAID, SAID))
    return said["session_id"]


def stored(session):
    answer = requests.get(f"{URL}/session/{session}/info", headers=HEADERS, timeout=PATIENCE)
    answer.raise_for_status()
    return answer.json()["message_count"]


line(client="requests", version=requests.__version__, transport="urllib3")
for each in (lines_of_requests, lines_of_requests_decoded, events_of_sseclient, events_of_httpx_sse):
    with call(each.__name__):
        session = turn(each, None)
        holds(session.startswith("session_"), session)
        equal(turn(each, session), session)
        equal(stored(session), 4)
