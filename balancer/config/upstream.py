"""One upstream: where it is, which keys it has, how it is reached."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed leaves it out

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, model_validator

from balancer.config.problems import Loc, place
from balancer.config.section import Section
from balancer.config.tree import reason
from balancer.config.values import (
    Count,
    CountOrOff,
    Globs,
    GlobsOrAny,
    Lifetime,
    OpenPaths,
    RawPaths,
    Text,
    http_url,
    is_loopback,
    is_off,
    listed,
    mapped,
    proxy_url,
    text_or_none,
    visible,
)
from balancer.model import Key

KINDS = ("gemini", "openai", "achuan", "coze")
AVAILABLE_KINDS = ("gemini", "openai", "achuan", "coze")
BASE_URLS = {
    "gemini": "https://generativelanguage.googleapis.com",
    "openai": "https://api.openai.com/v1",
    "coze": "https://api.coze.cn/v3",
}
OPENAI_KINDS = ("openai", "gemini")
"""Kinds whose servers speak OpenAI's dialect themselves: all of it passes to them."""
SETTINGS_OF_ONE_KIND = {
    **dict.fromkeys(("key_header", "max_tokens_member", "paths"), "openai"),
    **dict.fromkeys(("session_ttl", "renew_explicit", "adopt_unknown_sessions", "fresh_history"), "achuan"),
    **dict.fromkeys(("bots", "bot_id", "user_id"), "coze"),
}
"""Settings of an upstream that mean something for this kind only."""
KEY_HEADERS = ("authorization", "x-api-key", "api-key")
"""Where servers of kind openai look for a key. One request carries one of them."""

_NOT_YOURS = frozenset(
    [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-goog-api-key",
    ]
)
_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|credential", re.IGNORECASE)
_SHORTEST_SECRET = 8

Report = Callable[[Loc, str], None]
"""Takes a place within the upstream and what is wrong there."""


def _key_text(value: SecretStr) -> SecretStr:
    """A blank stays: `["${A:-}", "${B:-}"]` is how optional keys are written, and the pool leaves it out."""
    text = value.get_secret_value().strip()
    if "," in text:
        raise ValueError("holds a comma: an entry of a list is one key")
    return SecretStr(visible(text) if text else "")


class KeyEntry(Section):
    """One entry of `keys`; a plain string is its `key`."""

    key: Annotated[SecretStr, AfterValidator(_key_text)]
    name: Text = None
    project: Text = None
    weight: Count = 1
    rpm: CountOrOff = None
    rpd: CountOrOff = None
    tpm: CountOrOff = None
    concurrency: CountOrOff = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"key": value} if isinstance(value, str) and not value.lstrip().startswith("{") else value

    def as_key(self) -> Key:
        return Key(
            secret=self.key.get_secret_value(),
            name=self.name,
            project=self.project,
            weight=self.weight,
            rpm=self.rpm,
            rpd=self.rpd,
            tpm=self.tpm,
            concurrency=self.concurrency,
        )


def _bot_id(value: Any) -> Any:
    """Bot ids are long numbers: YAML reads them as such."""
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else text_or_none(value)
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value.strip()):
        raise ValueError("must be the id of a bot, as it stands in its address")
    return value.strip() if isinstance(value, str) else value


def _bot_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", value):
        raise ValueError("must be a name of letters, digits and . _ : -")
    return value


class Bot(Section):
    """One entry of `bots`: the name that clients know it by as a model, and its id."""

    name: Annotated[str, AfterValidator(_bot_name)]
    bot_id: Annotated[str, BeforeValidator(_bot_id)]


def _proxy(value: Any) -> Any:
    if value is None or value is False or not isinstance(value, str):
        return "off" if value is False else value
    if not value.strip():
        return None
    return "off" if is_off(value) else proxy_url(value)


def _headers(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError("has a field name with characters that HTTP does not allow")
        if name.lower() in _NOT_YOURS:
            raise ValueError(f"{name} is set by the proxy itself")
        if re.search(r"[^\t\x20-\x7e]", text):
            raise ValueError(f"the value of {name} holds a control character or a letter outside ASCII")
    return value


class Upstream(Section):
    """One entry of `upstreams`. The properties are what the settings come to; `resolve` fills them while loading.

    `models` None: the file names none, so that the upstream's own list counts. `raw`: globs of the paths that
    `/proxy/{upstream}/…` opens, each from its slash on; ("*",) opens all, () none.
    """

    kind: Literal["gemini", "openai", "achuan", "coze"]
    base_url: Annotated[str, AfterValidator(http_url)]
    keys: Annotated[tuple[KeyEntry, ...], BeforeValidator(listed)] = Field(default=(), repr=False)
    keys_file: Text = None
    proxy: Annotated[str | None, BeforeValidator(_proxy)] = Field(default=None, repr=False)
    ca_file: Text = None
    headers: Annotated[dict[str, str], BeforeValidator(mapped), AfterValidator(_headers)] = Field(
        default={}, repr=False
    )
    models: GlobsOrAny = None
    disabled_models: Globs = ()
    aliases: Annotated[dict[str, str], BeforeValidator(mapped)] = Field(default={})
    raw: RawPaths = ()
    key_header: Literal["authorization", "x-api-key", "api-key"] = "authorization"
    max_tokens_member: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    paths: OpenPaths = ()
    session_ttl: Lifetime = 86400.0
    renew_explicit: bool = False
    adopt_unknown_sessions: bool = True
    fresh_history: Literal["none", "transcript"] = "none"
    bots: Annotated[tuple[Bot, ...], BeforeValidator(listed)] = ()
    bot_id: Annotated[str | None, BeforeValidator(_bot_id)] = None
    user_id: Annotated[str, Field(max_length=128), BeforeValidator(lambda v: text_or_none(v) or "default_user")] = (
        "default_user"
    )

    _name: str = PrivateAttr("")
    _pool: tuple[Key, ...] = PrivateAttr(())
    _egress_proxy: str | None = PrivateAttr(None)
    _egress_ca_file: str | None = PrivateAttr(None)

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self._name

    @property
    def pool(self) -> tuple[Key, ...]:
        """Every key, those of `keys` before those of `keys_file`."""
        return self._pool

    @property
    def bot_ids(self) -> dict[str, str]:
        """Model to bot id, of kind coze: the short form is one bot named like the upstream."""
        short = {self.name: self.bot_id} if self.bot_id is not None else {}
        return short | {bot.name: bot.bot_id for bot in self.bots}

    @property
    def egress_proxy(self) -> str | None:
        """The HTTP proxy to connect through, credentials included."""
        return self._egress_proxy

    @property
    def egress_ca_file(self) -> str | None:
        """The file of certificate authorities to trust instead of the system's."""
        return self._egress_ca_file

    def secret_texts(self) -> Iterator[str]:
        """Every text of this upstream that must not be read anywhere."""
        for key in self._pool:
            yield key.secret
        for name, value in self.headers.items():
            if _SECRET_HEADER.search(name) and len(value) >= _SHORTEST_SECRET:
                yield value
        password = urlsplit(self._egress_proxy or "").password
        if password:
            yield password

    def resolve(self, name: str, folder: Path, environ: Mapping[str, str], report: Report) -> None:
        """Reads `keys_file`, joins the keys, settles proxy and CA file. Relative paths count from `folder`."""
        self._name = name
        found: list[tuple[Loc, Key]] = [
            (("keys", index), entry.as_key()) for index, entry in enumerate(self.keys) if entry.key
        ]
        found += self._from_file(folder, report)
        self._pool = tuple(self._distinct(found, report))
        if self.kind == "coze":
            self._check_bots(report)
        self._egress_proxy = self._proxy_from(environ, report)
        self._egress_ca_file = self._ca_file_from(folder, environ, report)

    def _check_bots(self, report: Report) -> None:
        for index, bot in enumerate(self.bots):
            if bot.name in {before.name for before in self.bots[:index]}:
                report(("bots", index), f"has the same name as another: {bot.name}")

    def _from_file(self, folder: Path, report: Report) -> Iterator[tuple[Loc, Key]]:
        if self.keys_file is None:
            return
        path = folder / self.keys_file
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            report(("keys_file",), f"{path} cannot be read: {reason(error)}")
            return
        for number, line in enumerate(lines, 1):
            text = line.split("#", 1)[0].strip()
            if not text:
                continue
            try:
                yield (f"keys_file line {number}",), Key(_key_text(SecretStr(text)).get_secret_value())
            except ValueError as error:
                report((f"keys_file line {number}",), str(error))

    def _distinct(self, found: list[tuple[Loc, Key]], report: Report) -> Iterator[Key]:
        secrets: dict[str, str] = {}
        names: dict[str, str] = {}
        for where, key in found:
            if key.secret in secrets:
                report(where, f"is the same key as {secrets[key.secret]}")
                continue
            if key.name is not None and key.name in names:
                report(where, f"has the same name as {names[key.name]}: {key.name}")
                continue
            secrets[key.secret] = place(("upstreams", self.name, *where))
            if key.name is not None:
                names[key.name] = place(("upstreams", self.name, *where))
            yield key

    def _proxy_from(self, environ: Mapping[str, str], report: Report) -> str | None:
        if self.proxy is not None:
            return None if self.proxy == "off" else self.proxy
        parts = urlsplit(self.base_url)
        variable = f"{parts.scheme}_proxy"
        written = environ.get(variable) or environ.get(variable.upper())
        if not written or is_loopback(parts.hostname or "") or self._bypassed(parts.netloc, environ):
            return None
        try:
            return proxy_url(written)
        except ValueError as error:
            report(("proxy",), f"the environment variable {variable.upper()} {error}; or set `proxy: off` here")
            return None

    @staticmethod
    def _bypassed(netloc: str, environ: Mapping[str, str]) -> bool:
        exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        return bool(proxy_bypass_environment(netloc, {"no": exempt}))

    def _ca_file_from(self, folder: Path, environ: Mapping[str, str], report: Report) -> str | None:
        if self.ca_file is not None:
            path, named = str(folder / self.ca_file), "{}"
        else:
            path, named = (
                environ.get("SSL_CERT_FILE", "").strip(),
                "the environment variable SSL_CERT_FILE names {}, which",
            )
        if path and not Path(path).is_file():
            report(("ca_file",), f"{named.format(path)} is not a file")
        return path or None
