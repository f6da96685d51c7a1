"""Everything that can go wrong, said once and in no dialect; a surface renders it in its own.

`ProxyError` is an answer of ours: an HTTP status, a `code` (snake case, as OpenAI's dialect spells them), a sentence for
people and, where waiting helps, the seconds after which it truly does. The `Upstream…` group is what a transport raises;
the relay turns what is left of those after its retries into a `ProxyError`.
"""

from __future__ import annotations


class ProxyError(Exception):
    """An error answer of ours. `message` is shown to the caller: no secret, no stack, no file name."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        close: bool = False,
        allow: str | None = None,
        param: str | None = None,
        limit: tuple[int, int, float] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.close = close
        """The rest of the request is not wanted: answer, then close the connection."""
        self.allow = allow
        """Value of the Allow field of a 405."""
        self.param = param
        """The request member at fault, where the dialect has a place for it."""
        self.limit = limit
        """A limit of the client's own: requests it allows, how many are left, seconds until it has room again."""


class UpstreamError(Exception):
    """An upstream did not give a usable answer. `repeatable`: the same request may fare better a moment later."""

    repeatable = False


class ConnectFailed(UpstreamError):
    """No connection: DNS, TCP, TLS or proxy. Nothing was sent."""


class AnswerLost(UpstreamError):
    """The connection ended before a whole answer head arrived."""

    repeatable = True


class AnswerBroken(UpstreamError):
    """What arrived is not HTTP, or not an answer that can be passed on."""


class FirstByteTimeout(UpstreamError):
    """The upstream took the request and said nothing within the time allowed."""


class AnswerCut(UpstreamError):
    """The body ended too early, broke its framing, or stalled past the idle timeout."""


class AnswerStalled(AnswerCut):
    """It stalled past the idle timeout."""


class ClientGone(Exception):
    """The client's connection ended before its request was complete."""


class ClientStalled(Exception):
    """The client stopped sending its body, or takes nothing of the answer, past the time allowed."""
