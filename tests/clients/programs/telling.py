"""How a program tells what came of each call: one JSON line, {"call", "ok", "detail"}; `ok` is null where there is no such call.

The first line of every program says what it is itself: {"client", "version", "transport"}. Standard library only: these
files are run by the interpreter of each client's environment, which has nothing of ours.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

URL = os.environ["PROXY_URL"]
TOKEN, OTHER_TOKEN = os.environ.get("CLIENT_TOKEN", "any-text"), os.environ.get("OTHER_TOKEN", "any-text")
"""Of two clients; where the proxy has no tokens, any text will do."""
MODEL = "gemini-2.5-flash"
ABSENT = re.compile(r"only supported in|not supported in|only available in|is not supported")
"""What Google's SDKs say of calls that exist in another product only."""


class Absent(Exception):
    """The SDK has no such call."""


def line(**said: object) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


@contextmanager
def call(name: str) -> Iterator[None]:
    """One call and what is expected of its answer. A failure is told, and the program goes on."""
    try:
        yield
    except Exception as failed:
        if _absent(failed):
            line(call=name, ok=None, detail="not in this SDK")
        else:
            place = traceback.extract_tb(failed.__traceback__)[-1]
            line(call=name, ok=False, detail=f"{type(failed).__name__}: {failed} ({place.name}:{place.lineno})"[:1500])
    else:
        line(call=name, ok=True, detail="")


def _absent(failed: Exception) -> bool:
    if isinstance(failed, Absent):
        return True
    if isinstance(failed, AttributeError):
        return getattr(type(failed.obj), "__module__", "").startswith(("google.genai", "openai."))
    return isinstance(failed, ValueError) and ABSENT.search(str(failed)) is not None


def equal(got: object, wanted: object) -> None:
    """Fail unless they are the same, and say what it was."""
    if got != wanted:
        raise AssertionError(f"{short(got)} instead of {short(wanted)}")


def holds(truth: object, about: object = "") -> None:
    if not truth:
        raise AssertionError(f"not so: {short(about)}")


def there(value):
    """What an earlier call made; where the SDK has no such call, it has not this one either."""
    if value is None:
        raise Absent
    return value


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:300]}…"


async def got(answer):
    """What a call returns, whichever of the two clients made it."""
    return await answer if inspect.isawaitable(answer) else answer


async def every(answer):
    """All of a stream or of the pages of a list."""
    answer = await got(answer)
    if hasattr(answer, "__aiter__"):
        return [each async for each in answer]
    return list(answer)
