"""The settings, section by section, with their defaults: what `config.yaml` explains, as types."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, model_validator

from balancer.config.section import Section
from balancer.config.upstream import Upstream
from balancer.config.values import (
    Count,
    CountOrOff,
    Duration,
    DurationOrOff,
    File,
    Globs,
    Host,
    Lifetime,
    Limit,
    Networks,
    Origins,
    Port,
    PortOrOff,
    Secret,
    Size,
    Text,
    Timeout,
    Url,
    beside_the_file,
    is_off,
    listed,
    size,
    visible,
)
from balancer.model import Client, Timeouts, fingerprint

MIB, GIB = 1024**2, 1024**3
HOUR, DAY = 3600.0, 86400.0
_SHORTEST_SIGNING_SECRET = 16


class Tls(Section):
    """`server.tls`: both files, or none."""

    cert: File = None
    key: File = None


def _long_enough(value: SecretStr | None) -> SecretStr | None:
    if value is not None and len(value.get_secret_value()) < _SHORTEST_SIGNING_SECRET:
        raise ValueError(f"is too short to sign with: at least {_SHORTEST_SIGNING_SECRET} characters, better 32")
    return value


class Server(Section):
    """`server`: the listener for clients."""

    host: Host = "127.0.0.1"
    port: Port = 8000
    public_url: Url = None
    trusted_proxies: Networks = ()
    secret: Annotated[Secret, AfterValidator(_long_enough)] = None
    tls: Tls = Tls()
    workers: Count = 1
    header_timeout: Timeout = 30.0
    body_idle_timeout: Timeout = 60.0
    keepalive_timeout: DurationOrOff = 75.0
    drain_timeout: DurationOrOff = 600.0
    max_body: Limit = 128 * MIB
    max_upload: Limit = 2 * GIB
    max_connections: CountOrOff = 20000


class Admin(Section):
    """`admin`: the listener for operators. Port None: there is none."""

    host: Host = "127.0.0.1"
    port: PortOrOff = 8001
    token: Secret = None


def _token_text(value: SecretStr) -> SecretStr:
    text = visible(value.get_secret_value().strip())
    if text.startswith("bal_"):
        raise ValueError("starts with bal_, which marks the session tokens of /auth/login")
    if text.startswith("sha256:"):
        if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", text):
            raise ValueError("sha256: is followed by the 64 hex digits of the secret's SHA-256")
        text = text.lower()
    return SecretStr(text)


def _client_name(value: str | None) -> str | None:
    if value is None:
        return None
    if value == "anonymous":
        raise ValueError("anonymous is the name of callers without a token; choose another")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", value):
        raise ValueError("a client's name is up to 64 letters, digits and . _ @ -")
    return value


class Token(Section):
    """One entry of `auth.tokens`: a client and what it may do."""

    name: Annotated[Text, AfterValidator(_client_name)] = None
    token: Annotated[SecretStr, AfterValidator(_token_text)]
    models: Globs = ("*",)
    rpm: CountOrOff = None
    concurrency: CountOrOff = None
    max_tokens: CountOrOff = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """`name=secret`, or a bare secret."""
        if not isinstance(value, str) or value.lstrip().startswith("{"):
            return value
        name, equals, secret = value.strip().partition("=")
        if not equals:
            return {"token": name}
        if not secret.strip("="):
            raise ValueError('is no "name=secret": nothing follows the name')
        return {"name": name.strip(), "token": secret.strip()}

    @property
    def digest(self) -> bytes:
        """SHA-256 of the secret: what a presented credential is compared by."""
        text = self.token.get_secret_value()
        if text.startswith("sha256:"):
            return bytes.fromhex(text.removeprefix("sha256:"))
        return hashlib.sha256(text.encode()).digest()

    @property
    def client(self) -> Client:
        """Who presents this token. Without a name, the token's fingerprint is its name."""
        name = self.name or self.digest.hex()[: len(fingerprint(""))]
        return Client(name, self.models, self.rpm, self.concurrency, self.max_tokens)


class Auth(Section):
    """`auth`: who may call."""

    tokens: Annotated[tuple[Token, ...], BeforeValidator(listed)] = Field(default=(), repr=False)
    exempt_loopback: bool = False
    login_ttl: Lifetime = 24 * HOUR
    max_sessions: Count = 10000


class Affinity(Section):
    """`affinity`: what stays with the key that it began with."""

    session_ttl: Lifetime = HOUR
    max_sessions: Count = 100_000
    max_bindings: Count = 200_000
    uploads: Literal["client", "session", "none"] = "client"


def _state_url(value: str) -> str:
    if urlsplit(value).scheme not in ("memory", "redis", "rediss", "unix"):
        raise ValueError("must be memory://")
    return value


class State(Section):
    """`state`: what the process remembers about sessions, bindings and resting keys."""

    url: Annotated[str, AfterValidator(_state_url)] = Field(default="memory://", repr=False)
    file: File = None


def _database_url(value: str, info: ValidationInfo) -> str:
    """The URL as it is opened: a relative file counts from the folder of the configuration file."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("sqlite", "postgresql", "postgres"):
        raise ValueError("must be sqlite:///file or postgresql://user@host/name")
    if parts.scheme != "sqlite":
        if parts.path in ("", "/"):
            raise ValueError("names no database: postgresql://user@host/name")
        return value
    file = value.removeprefix("sqlite:///")
    if file in ("", ":memory:") or file == value or "?" in file:
        raise ValueError("must be sqlite:///file, or sqlite:////folder/file from the root on")
    return f"sqlite:///{beside_the_file(file, info)}"


class Database(Section):
    """`database`: where stored chats are kept."""

    url: Annotated[str, AfterValidator(_database_url)] = Field(default="sqlite:///balancer.db", repr=False)


class RelayTimeouts(Section):
    """`relay.timeouts`, in seconds; None: off."""

    connect: Timeout = 10.0
    first_byte: Timeout = 300.0
    idle: Timeout = 300.0
    total: Timeout = None

    def as_timeouts(self) -> Timeouts:
        return Timeouts(self.connect, self.first_byte, self.idle, self.total)


class Relay(Section):
    """`relay`: how calls travel."""

    replay_limit: Annotated[int, BeforeValidator(lambda value: 0 if is_off(value) else size(value))] = 20 * MIB
    buffer_budget: Size = 256 * MIB
    attempts: Count = 4
    max_wait: Duration = 30.0
    keepalive: Timeout = None
    timeouts: RelayTimeouts = RelayTimeouts()


class Chat(Section):
    """`chat`: the chat surface."""

    upstream: Text = None
    model: Text = None
    turn_wait: Duration = 120.0
    max_body: Limit = 10 * MIB
    allowed_origins: Origins = ()
    retention: Timeout = None


class Conversations(Section):
    """`conversations`: the surface of stored chats."""

    model: Text = None
    history: Count = 100
    max_body: Limit = 10 * MIB
    allowed_origins: Origins = ()


class OpenAI(Section):
    """`openai`: the OpenAI-shaped surface."""

    resource_ttl: Lifetime = 30 * DAY
    default_upstream: Text = None
    allowed_origins: Origins = ()


class Logging(Section):
    """`logging`: how much, in which form, and where to."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    file: File = None


class Settings(Section):
    """The whole configuration."""

    server: Server = Server()
    admin: Admin = Admin()
    auth: Auth = Auth()
    affinity: Affinity = Affinity()
    state: State = State()
    database: Database = Database()
    relay: Relay = Relay()
    upstreams: dict[str, Upstream] = Field(default={})
    chat: Chat = Chat()
    conversations: Conversations = Conversations()
    openai: OpenAI = OpenAI()
    logging: Logging = Logging()

    def keyless_upstreams(self) -> list[str]:
        """Names of the upstreams that no request could be sent to for want of a key."""
        return [name for name, upstream in self.upstreams.items() if not upstream.pool]

    def secret_texts(self) -> frozenset[str]:
        """Every secret that the configuration holds in clear, for redaction."""
        found = {text for upstream in self.upstreams.values() for text in upstream.secret_texts()}
        for secret in (self.server.secret, self.admin.token, *(entry.token for entry in self.auth.tokens)):
            if secret is not None and not secret.get_secret_value().startswith("sha256:"):
                found.add(secret.get_secret_value())
        for url in (self.state.url, self.database.url):
            password = urlsplit(url).password
            if password:
                found.add(password)
        return frozenset(found)

    @cached_property
    def signing_key(self) -> bytes:
        """32 bytes that sign what must be believed when it comes back (upload addresses, page tokens).

        From `server.secret`, else from the keys of all pools: the same after a restart and in every replica with the same
        keys. With neither, random: nothing outlives a process that has no keys.
        """
        pool = sorted(key.secret for upstream in self.upstreams.values() for key in upstream.pool)
        if self.server.secret is not None:
            source = "secret\n" + self.server.secret.get_secret_value()
        elif pool:
            source = "keys\n" + "\n".join(pool)
        else:
            return secrets.token_bytes(32)
        return hmac.digest(b"balancer signing key", source.encode(), "sha256")

    def clients(self) -> Mapping[bytes, Client]:
        """Every client by the SHA-256 of its token."""
        return {entry.digest: entry.client for entry in self.auth.tokens}
