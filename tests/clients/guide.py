"""Writes the guide of the clients from what a run saw: `make clients-doc`. No dates, no times: the same run, the same text."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from tests.clients.environments import NotInstalled
from tests.clients.matrix import ROWS, Row
from tests.clients.run import Saw, run

GUIDE = Path(__file__).parents[2] / "balancer" / "docs" / "clients.md"
_HEAD = """\
# Clients: how they are pointed here, and what was seen to work

`BASE` is the address of this proxy, `http://127.0.0.1:8000` or with `/s/my-session` behind it. The API key is the client's token,
or any text where no tokens are configured. Behind an HTTP proxy set `NO_PROXY=127.0.0.1,localhost`.

| client | setting |
|---|---|
| google-genai (Python) | `Client(http_options={"base_url": BASE})`, or `GOOGLE_GEMINI_BASE_URL=BASE` |
| @google/genai (JavaScript) | `new GoogleGenAI({httpOptions: {baseUrl: BASE}})` |
| gemini-cli | `GOOGLE_GEMINI_BASE_URL=BASE GEMINI_API_KEY=any-text gemini`, with API key as the way to log in |
| langchain-google-genai | `ChatGoogleGenerativeAI(base_url=BASE)` |
| Vercel AI SDK | `createGoogleGenerativeAI({baseURL: BASE + "/v1beta"})` |
| pydantic-ai | `GoogleProvider(base_url=BASE)` |
| curl | `curl BASE/v1beta/models/gemini-2.5-flash:generateContent` |
| openai (Python) | `OpenAI(base_url=BASE + "/v1")` |
| openai (JavaScript) | `new OpenAI({baseURL: BASE + "/v1"})` |
| litellm | `completion(model="openai/" + MODEL, api_base=BASE + "/v1")`; with tools, install `litellm[mcp]` |
| langchain-openai | `ChatOpenAI(base_url=BASE + "/v1")`; for `OpenAIEmbeddings` also `check_embedding_ctx_length=False` |
| Vercel AI SDK (OpenAI) | `createOpenAI({baseURL: BASE + "/v1"})`, then `.chat(MODEL)` or `.responses(MODEL)` |
| aider | `OPENAI_API_BASE=BASE/v1 aider --model openai/MODEL` |
| pydantic-ai (OpenAI) | `OpenAIProvider(base_url=BASE + "/v1")` |
| curl (OpenAI) | `curl BASE/v1/chat/completions -H "Authorization: Bearer TOKEN" -d '{"model": "MODEL", …}'` |

On OpenAI's surface `MODEL` is `provider/model`, where the provider is an upstream's name, or a bare model that only one upstream
has, or an alias; a session token of `/auth/login` does for the API key, and remembers the model that was named last.

## What was seen

`make test` runs each of these programs against this proxy and the stand-in upstream, which refuses what another key owns, with
three keys of which one is rate-limited at times. The rows below are what such a run saw, and the test fails when it sees anything
else. `any` is the version that the system has. From openai on, every byte that passed was compared both ways: requests differ by
the provider in `model`, by members and fields that are for the proxy, and by the credential; answers by fields that would speak
for our own origin (`Set-Cookie` and two more), bodies and streams not at all.

| client | version | transport | API | calls | result |
|---|---|---|---|---|---|
"""
_CALLS = """\

## The calls

Calls that Google offers on another of its products only, or not in that version, are "not in this SDK". A file search store and
the files that are imported into it are made in one session. Lists show what one key has. pydantic-ai in this version, with
google-genai 2.34.0, sends two User-Agent lines, which strict servers refuse; here they are made one. On OpenAI's surface lists
show what all keys have.
"""


def line(row: Row, saw: Saw) -> str:
    """The row's line of the table."""
    absent = [call.name for call in saw.calls if call.ok is None]
    failed = [call.name for call in saw.calls if call.ok is False]
    parts = [f"{sum(call.ok is True for call in saw.calls)} ok"]
    if failed:
        parts.append(f"FAILED: {', '.join(failed)}")
    if absent:
        parts.append(f"not in this SDK: {', '.join(absent)}")
    api = ", ".join(f"/{each}" for each in sorted(saw.api))
    return f"| {row.client} | {row.version} | {row.transport} | {api} | {len(saw.calls)} | {'; '.join(parts)} |\n"


def paragraph(row: Row, saw: Saw) -> str:
    """The calls that the row's program makes."""
    text = f"**{row.client}**: {', '.join(call.name for call in saw.calls)}."
    return textwrap.fill(text, 130, break_long_words=False, break_on_hyphens=False) + "\n"


def render(seen: Mapping[Row, Saw]) -> str:
    paragraphs = dict.fromkeys(paragraph(row, saw) for row, saw in seen.items())
    table = "".join(line(row, saw) for row, saw in seen.items())
    return _HEAD + table + _CALLS + "".join(f"\n{each}" for each in paragraphs)


def main() -> int:
    """Run every row and write the guide. 1 if one cannot be run."""
    seen: dict[Row, Saw] = {}
    for row in ROWS:
        try:
            seen[row] = asyncio.run(run(row))
        except NotInstalled as missing:
            sys.stderr.write(f"{row.name}: {missing}\n")
            return 1
        sys.stdout.write(line(row, seen[row]))
        for call in seen[row].calls:
            if call.ok is False:
                sys.stdout.write(f"    {call.name}: {call.detail}\n")
        sys.stdout.write(seen[row].trouble)
    GUIDE.write_text(render(seen), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
