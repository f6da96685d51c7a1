"""OpenAI's refusals by name, for the script: those that speak of a key, of a rate, and of the server.

key         key-invalid (401) payment (402) account-deactivated region forbidden (403) names-key (401 with the whole key)
rate (429)  rate-retry-after-ms rate-retry-after rate-date rate-reset rate-bare quota
            `seconds` of the fault is the delay; rate-reset says it of the tokens, whose remaining number is 0, and
            says half of it of the requests, of which some remain
server      error-408 error-500 error-502 error-503 error-504 error-529 redirect early-413
"""

from __future__ import annotations

from email.utils import formatdate

from balancer.standin.answers import Reply
from balancer.standin.faults import Refusals, Victim
from balancer.standin.openai.answers import error, wrong_key

_502 = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"
_DEACTIVATED = (
    "Your OpenAI account has been deactivated, please check your email for more information. If you feel this is an "
    "error, contact us through our help center at help.openai.com."
)
_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)
_SERVER = (
    "The server had an error while processing your request. Sorry about that! You can retry your request, or contact us "
    "through our help center at help.openai.com if the error persists."
)


def _rate(victim: Victim, *headers: tuple[str, str]) -> Reply:
    text = (
        f"Rate limit reached for {victim.model or 'default'} in organization org-standin on tokens per min (TPM): "
        f"Limit 30000, Used 30000, Requested 20. Please try again in {victim.fault.seconds}s. "
        "Visit https://platform.openai.com/account/rate-limits to learn more."
    )
    return error(429, text, kind="tokens", code="rate_limit_exceeded", headers=headers)


def _rate_reset(victim: Victim) -> Reply:
    return _rate(
        victim,
        ("x-ratelimit-remaining-requests", "12"),
        ("x-ratelimit-reset-requests", f"{victim.fault.seconds * 500}ms"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", _duration(victim.fault.seconds)),
    )


def _duration(seconds: int) -> str:
    """As OpenAI writes it: 17s, 1m3s, 2h0m5s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _names_key(victim: Victim) -> Reply:
    return error(401, f"Incorrect API key provided: {victim.key}.", code="invalid_api_key")


def _server(status: int, message: str = _SERVER, code: str | None = None) -> Reply:
    return error(status, message, kind="server_error", code=code)


REFUSALS: Refusals = {
    "key-invalid": lambda v: wrong_key(v.key),
    "payment": lambda v: error(402, "Insufficient balance.", kind="billing_error", code="payment_required"),
    "account-deactivated": lambda v: error(403, _DEACTIVATED, code="account_deactivated"),
    "region": lambda v: error(
        403,
        "Country, region, or territory not supported",
        kind="request_forbidden",
        code="unsupported_country_region_territory",
    ),
    "forbidden": lambda v: error(403, "You have insufficient permissions for this operation.", code=None),
    "names-key": _names_key,
    "rate-retry-after-ms": lambda v: _rate(
        v, ("retry-after-ms", str(v.fault.seconds * 1000)), ("retry-after", str(v.fault.seconds + 1))
    ),
    "rate-retry-after": lambda v: _rate(v, ("retry-after", str(v.fault.seconds))),
    "rate-date": lambda v: _rate(v, ("retry-after", formatdate(v.wall + v.fault.seconds, usegmt=True))),
    "rate-reset": _rate_reset,
    "rate-bare": _rate,
    "quota": lambda v: error(429, _QUOTA, kind="insufficient_quota", code="insufficient_quota"),
    "error-408": lambda v: error(408, "Request timed out.", kind="server_error", code="request_timeout"),
    "error-500": lambda v: _server(500),
    "error-502": lambda v: Reply(_502, 502, "text/html"),
    "error-503": lambda v: _server(503, "The engine is currently overloaded, please try again later.", "overloaded"),
    "error-504": lambda v: _server(504, "The request timed out. Please try again."),
    "error-529": lambda v: _server(529, "Overloaded"),
    "redirect": lambda v: Reply(b"", 307, "text/html", [("Location", v.fault.data.decode() or "/elsewhere")]),
    "early-413": lambda v: error(413, "Maximum content size limit exceeded.", headers=[("Connection", "close")]),
}
