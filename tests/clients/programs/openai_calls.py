"""What programs in Python do on OpenAI's surface beside their client's own calls. Standard library only."""

from __future__ import annotations

import json
import urllib.request

from telling import URL


def post(path: str, body: object, token: str | None = None) -> dict:
    """The answer to a plain POST."""
    headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def login(token: str) -> str:
    """A session token for a client's."""
    return post("/auth/login", {"api_key": token})["token"]
