"""Answers in OpenAI's shape: the fields of its edge and of its API, the JSON, and the errors in its own words.

Sources: platform.openai.com/docs/api-reference, docs.anthropic.com/en/api/errors (for `/messages`), and answers as clients
quote them.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from balancer.standin.answers import Json, Refusal, Reply

JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"

FRAME: tuple[tuple[str, str], ...] = (
    ("openai-version", "2020-10-01"),
    ("openai-organization", "org-standin"),
    ("openai-processing-ms", "7"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-limit-tokens", "2000000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-remaining-tokens", "1999990"),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-ratelimit-reset-tokens", "0s"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
    ("x-content-type-options", "nosniff"),
    ("set-cookie", "__cf_bm=stand-in; path=/; HttpOnly; Secure; SameSite=None"),
    ("set-cookie", "_cfuvid=stand-in; path=/; HttpOnly; Secure; SameSite=None"),
    ("server", "cloudflare"),
    ("cf-ray", "9a00000000000000-FRA"),
    ("alt-svc", 'h3=":443"; ma=86400'),
)

_NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're accessing the API "
    "from your browser and are prompted for a username and password. You can obtain an API key from "
    "https://platform.openai.com/account/api-keys."
)
_NO_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library "
    "correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON. If you have trouble figuring "
    "out how to fix this, please contact us through our help center at help.openai.com.)"
)

_MISSING: dict[str, str] = {
    "files": "No such File object: {}",
    "uploads": "No such Upload object: {}",
    "batches": "No batch found with id '{}'.",
    "responses": "Response with id '{}' not found.",
    "chat/completions": "Chat completion with id '{}' not found.",
    "conversations": "Conversation with id '{}' not found.",
    "fine_tuning/jobs": "Could not find fine tune: {}",
    "vector_stores": "Vector store with id '{}' not found.",
    "assistants": "No assistant found with id '{}'.",
    "threads": "No thread found with id '{}'.",
    "containers": "Container with id '{}' not found.",
    "evals": "Eval with id '{}' not found.",
    "videos": "Video with id '{}' not found.",
    "skills": "Skill '{}' not found.",
    "messages": "No message found with id '{}'.",
    "runs": "No run found with id '{}'.",
    "items": "Item with id '{}' not found.",
}


def ok(value: object, status: int = 200) -> Reply:
    return Reply(orjson.dumps(value, option=orjson.OPT_INDENT_2), status, JSON)


def event(value: object, name: str | None = None) -> bytes:
    """One event of a stream, with its type where the API has types."""
    data = orjson.dumps(value)
    return b"data: %b\n\n" % data if name is None else b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> Reply:
    body = {"message": message, "type": kind, "param": param, "code": code}
    return Reply(orjson.dumps({"error": body}, option=orjson.OPT_INDENT_2), status, JSON, list(headers))


def refuse(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> Refusal:
    return Refusal(error(status, message, kind=kind, param=param, code=code))


def no_key() -> Reply:
    return error(401, _NO_KEY)


def wrong_key(key: str) -> Reply:
    """Names the key as OpenAI does: its ends."""
    shown = f"{key[:8]}{'*' * 8}{key[-4:]}" if len(key) > 16 else "*" * len(key)
    text = f"Incorrect API key provided: {shown}. You can find your API key at https://platform.openai.com/account/api-keys."
    return error(401, text, code="invalid_api_key")


def no_json() -> Refusal:
    return refuse(400, _NO_JSON)


def missing(param: str) -> Refusal:
    return refuse(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def wrong_type(param: str, wanted: str, got: object) -> Refusal:
    names = {
        str: "a string",
        int: "an integer",
        float: "a decimal",
        bool: "a boolean",
        list: "an array",
        dict: "an object",
    }
    found = names.get(type(got), "null")
    text = f"Invalid type for '{param}': expected {wanted}, but got {found} instead."
    return refuse(400, text, param=param, code="invalid_type")


def no_model(model: str) -> Refusal:
    text = f"The model `{model}` does not exist or you do not have access to it."
    return refuse(404, text, code="model_not_found")


def unknown_url(method: str, path: str) -> Reply:
    return error(404, f"Invalid URL ({method} {path})")


def wrong_method(method: str, path: str, allowed: Iterable[str]) -> Reply:
    text = f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)"
    return error(405, text, code="method_not_supported", headers=[("Allow", ", ".join(sorted(allowed)))])


def no_resource(name: str, param: str = "id") -> Refusal:
    """404 in the words of its collection: foreign and missing look the same."""
    collection, _, identity = name.rpartition("/")
    words = _MISSING.get(collection) or _MISSING.get(collection.rpartition("/")[2]) or "No such object: {}"
    code = "fine_tune_not_found" if collection == "fine_tuning/jobs" else None
    return refuse(404, words.format(identity), param=param, code=code)


_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def anthropic_error(status: int, message: str, request_id: str) -> Json:
    kind = _ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
