"""Log in, bind a model, log out: a client token is traded for a session token that carries a model.

Errors are `{"detail": text}`. The texts are what clients of the system that this surface stands in for know; their order is
that of the checks below, first that applies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol

import orjson
from aiohttp import web

from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Client
from balancer.relay.exchange import Rooms
from balancer.routing.logins import LONGEST_MODEL, PREFIX, Login, Logins
from balancer.surfaces.base import ClientBody
from balancer.web import CLIENT, LOGIN, RECORD, Surface, credentials, error_answer, json_answer

MAX_BODY = 64 << 10
"""Bytes of a request's body."""

_LOGGED_IN = "登录成功，请使用此 token 进行后续请求。使用 /auth/bind-model 绑定模型。"
_LOGGED_OUT = "登出成功"
_NO_KEY = "请提供 API Key（通过请求体 api_key 字段或 Authorization 头）"
_BAD_KEY = "无效的 API Key"
_NO_SESSION_TOKEN = "缺少 Session Token"  # noqa: S105 - what is said of one
_NO_SESSION = "Session 不存在或已过期"
_NOT_JSON = "请求体必须是有效的 JSON 格式"
_EMPTY = "请求体不能为空"
_NO_OBJECT = "请求体必须是 JSON 对象"
_NO_MODEL = "请提供 provider_name 和 model_name"
_UNAVAILABLE = "会话存储暂不可用"

Members = dict[str, Any]


class Admits(Protocol):
    """Lets callers in that no token names, or not (`middlewares.auth.Callers`)."""

    def without(self, request: web.Request, surface: Surface) -> Client: ...


class LoginSurface:
    """Serves `/auth/…`. All it is given is asked anew for each request: a reload changes the next one."""

    name = "login"

    def __init__(
        self,
        rooms: Callable[[], Rooms],
        logins: Callable[[], Logins],
        callers: Callable[[], Admits],
        body_idle: Callable[[], float | None],
    ) -> None:
        """`body_idle`: seconds without a byte after which a body is given up."""
        self._rooms = rooms
        self._logins = logins
        self._callers = callers
        self._body_idle = body_idle
        self._routes: dict[str, Callable[[web.Request], Awaitable[Members]]] = {
            "/auth/login": self._login,
            "/auth/bind-model": self._bind_model,
            "/auth/logout": self._logout,
        }

    def claims(self, request: web.Request) -> bool:
        raw = request.raw_path
        # The absolute form (RFC 9112 section 3.2.2) is rare, and only there the path must be taken apart.
        return raw.startswith("/auth/") or (not raw.startswith("/") and request.path.startswith("/auth/"))

    def recognise(self, request: web.Request) -> Client | None:
        """Each route has its own answer to a credential that is missing or wrong."""
        return ANONYMOUS

    def allowed_origins(self) -> Collection[str]:
        return ()

    def refuse(self, error: ProxyError, request: web.BaseRequest | None = None) -> web.Response:
        text = _UNAVAILABLE if error.code == "session_store_unavailable" else error.message
        return error_answer(error, orjson.dumps({"detail": text.encode("utf-8", "backslashreplace").decode()}))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        route = self._routes.get(request.path)
        if route is None:
            raise ProxyError(404, "unknown_url", "Not Found")
        if request.method != "POST":
            raise ProxyError(405, "method_not_allowed", f"{request.method} is not a method of this URL.", allow="POST")
        return json_answer(200, orjson.dumps(await route(request)))

    async def _login(self, request: web.Request) -> Members:
        body = await self._body(request)
        try:
            members = orjson.loads(body)
        except orjson.JSONDecodeError:
            members = {}
        if not isinstance(members, dict):
            raise ProxyError(400, "invalid_body", _NO_OBJECT)
        logins = self._logins()
        key, client = self._caller(request, members.get("api_key"), logins)
        request[CLIENT] = client
        answer: Members = {"token": "", "expires_in": int(logins.ttl), "message": _LOGGED_IN}
        provider, model = members.get("provider_name"), members.get("model_name")
        if provider is None and model is None:
            answer["token"] = await logins.issue(key, client)
            return answer
        provider, model = _named(provider, model)
        await self._check_model(provider, model, client)
        answer["token"] = await logins.issue(key, client, provider, model)
        return answer | {"provider_name": provider, "model_name": model}

    def _caller(self, request: web.Request, api_key: Any, logins: Logins) -> tuple[str, Client]:
        """The key that somebody logs in with, and whose it is."""
        if api_key is None:
            given = list(credentials(request))
        else:
            given = [api_key.strip()] if isinstance(api_key, str) and api_key.strip() else []
        if not given:
            raise ProxyError(401, "missing_api_key", _NO_KEY)
        for key in given:
            client = logins.client_of(key)
            if client is not None:
                return key, self._callers().without(request, self) if client is ANONYMOUS else client
        raise ProxyError(403, "invalid_api_key", _BAD_KEY)

    async def _bind_model(self, request: web.Request) -> Members:
        body = await self._body(request)
        tokens = _tokens(request)
        try:
            members = orjson.loads(body) if body else None
        except orjson.JSONDecodeError:
            raise ProxyError(400, "invalid_json", _NOT_JSON) from None
        if members is None or members == {}:
            raise ProxyError(400, "invalid_body", _EMPTY)
        if not isinstance(members, dict):
            raise ProxyError(400, "invalid_body", _NO_OBJECT)
        provider, model = _named(members.get("provider_name"), members.get("model_name"))
        logins = self._logins()
        login = (await self._session(request, tokens, logins))[1]
        await self._check_model(provider, model, login.client)
        await logins.bind(login, provider, model)
        return {"message": f"模型 {provider}/{model} 已绑定到 session", "provider_name": provider, "model_name": model}

    async def _logout(self, request: web.Request) -> Members:
        await self._body(request)
        logins = self._logins()
        token = (await self._session(request, _tokens(request), logins))[0]
        if not await logins.end(token):
            raise ProxyError(404, "session_not_found", _NO_SESSION)
        return {"message": _LOGGED_OUT}

    async def _session(self, request: web.Request, tokens: list[str], logins: Logins) -> tuple[str, Login]:
        """The first session token that is valid, and its session. Raises ProxyError 404."""
        for token in tokens:
            login = await logins.find(token) if token.startswith(PREFIX) else None
            if login is not None:
                if login.client is ANONYMOUS:
                    self._callers().without(request, self)
                request[LOGIN], request[CLIENT] = login, login.client
                return token, login
        raise ProxyError(404, "session_not_found", _NO_SESSION)

    async def _check_model(self, provider: str, model: str, client: Client) -> None:
        """Raises ProxyError 404, 400 or 403 where the client cannot use that model of that very upstream."""
        rooms = self._rooms()
        missing = ProxyError(404, "model_not_found", f"模型 {provider[:LONGEST_MODEL]}/{model[:LONGEST_MODEL]} 不存在")
        if provider not in rooms.upstreams or len(model) > LONGEST_MODEL:
            raise missing
        try:
            choices = await rooms.router.resolve(f"{provider}/{model}", client)
        except ProxyError as refused:
            # Others may have the whole text for a name: what is said of those is nothing to this one.
            if refused.code == "model_ambiguous" or f"模型 {provider}/{model}" not in refused.message:
                raise missing from None
            raise
        if not any(choice.upstream == provider for choice in choices):
            raise missing

    async def _body(self, request: web.Request) -> bytes:
        """The whole body. Raises ProxyError 413."""
        if not request.body_exists:
            return b""
        source = ClientBody(request, MAX_BODY, self._body_idle())
        pieces = []
        while piece := await source.read():
            pieces.append(piece)
        body = b"".join(pieces)
        request[RECORD].bytes_in = len(body)
        return body


def _tokens(request: web.Request) -> list[str]:
    tokens = list(credentials(request))
    if not tokens:
        raise ProxyError(401, "missing_api_key", _NO_SESSION_TOKEN)
    return tokens


def _named(provider: Any, model: Any) -> tuple[str, str]:
    if isinstance(provider, str) and isinstance(model, str) and provider.strip() and model.strip():
        return provider, model
    raise ProxyError(400, "missing_required_parameter", _NO_MODEL)
