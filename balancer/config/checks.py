"""Checks that span several settings, or look at the machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from balancer.config.models import Settings
from balancer.config.problems import Loc
from balancer.config.upstream import KEY_HEADERS, OPENAI_KINDS, SETTINGS_OF_ONE_KIND, Upstream
from balancer.config.values import is_loopback

Finding = tuple[Loc, tuple[Loc, ...], str]
"""The place, the settings that the finding rests on, and the sentence."""

_LATER = "is not available in this version"


def cross_checks(settings: Settings) -> Iterator[Finding]:
    yield from _listeners(settings)
    yield from _tls(settings)
    yield from _tokens(settings)
    yield from _state(settings)
    yield from _database(settings)
    yield from _upstreams(settings)
    yield from _chat(settings)


def _listeners(settings: Settings) -> Iterator[Finding]:
    server, admin = settings.server, settings.admin
    if not is_loopback(server.host) and not settings.auth.tokens:
        yield (
            ("server", "host"),
            (("server", "host"), ("auth", "tokens")),
            f"{server.host} can be reached from other machines, and without auth.tokens anybody there could spend the keys: "
            'set auth.tokens (BALANCER_TOKENS="name=secret"), or listen on 127.0.0.1',
        )
    if admin.port is not None and not is_loopback(admin.host) and admin.token is None:
        yield (
            ("admin", "host"),
            (("admin",),),
            f"{admin.host} can be reached from other machines: set admin.token, or listen on 127.0.0.1",
        )
    if admin.port and admin.port == server.port and _meet(admin.host, server.host):
        yield ("admin", "port"), (("admin",), ("server", "port")), f"{admin.port} is the port of server.port as well"


def _meet(one: str, other: str) -> bool:
    return one == other or {one, other} & {"0.0.0.0", "::"} != set()  # noqa: S104


def _tls(settings: Settings) -> Iterator[Finding]:
    tls = settings.server.tls
    for have, want in (("cert", "key"), ("key", "cert")):
        name = getattr(tls, have)
        here: Loc = ("server", "tls", have)
        if name is not None and getattr(tls, want) is None:
            yield ("server", "tls", want), (("server", "tls"),), f"is needed beside server.tls.{have}"
        if name is not None and not Path(name).is_file():
            yield here, (here,), f"{name} is not a file"


def _tokens(settings: Settings) -> Iterator[Finding]:
    names: dict[str, Loc] = {}
    digests: dict[bytes, Loc] = {}
    for index, entry in enumerate(settings.auth.tokens):
        loc: Loc = ("auth", "tokens", index)
        needs: tuple[Loc, ...] = (("auth", "tokens"),)
        if entry.digest in digests:
            yield loc, needs, f"is the same secret as auth.tokens[{digests[entry.digest][-1]}]"
        elif entry.client.name in names:
            yield loc, needs, f"has the same name as auth.tokens[{names[entry.client.name][-1]}]: {entry.client.name}"
        digests.setdefault(entry.digest, loc)
        names.setdefault(entry.client.name, loc)


def _state(settings: Settings) -> Iterator[Finding]:
    workers, url = settings.server.workers, settings.state.url
    if workers > 1:
        why = (
            f"{workers} processes cannot share what memory:// keeps: each would hand out the same keys by its own count, and "
            "a session would meet another key in each; "
            if url.startswith("memory:")
            else ""
        )
        yield (
            ("server", "workers"),
            (("server", "workers"), ("state", "url")),
            f"{why}more than 1 {_LATER}",
        )
    if not url.startswith("memory:"):
        yield ("state", "url"), (("state", "url"),), f"{urlsplit(url).scheme}:// {_LATER}; use memory://"
    if settings.state.file is not None:
        yield ("state", "file"), (("state", "file"),), f"a journal of the state {_LATER}; leave it empty"


def _database(settings: Settings) -> Iterator[Finding]:
    here: Loc = ("database", "url")
    if not settings.database.url.startswith("sqlite:") and find_spec("psycopg") is None:
        yield here, (here,), "postgresql:// needs a driver that is not installed: pip install 'balancer[postgres]'"


def _upstreams(settings: Settings) -> Iterator[Finding]:
    everywhere: tuple[Loc, ...] = (("upstreams",),)
    if not settings.upstreams:
        yield ("upstreams",), everywhere, "needs at least one upstream"
    for name, upstream in settings.upstreams.items():
        here: Loc = ("upstreams", name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            yield here, (here,), "an upstream's name is up to 64 letters, digits and . _ -"
        for alias, model in upstream.aliases.items():
            if alias == model:
                yield (*here, "aliases", alias), (here,), "stands for itself"
        for member, text in _of_its_kind(upstream):
            yield (*here, member), (here,), text
    known = ", ".join(settings.upstreams)
    for loc, wanted in (
        (("chat", "upstream"), settings.chat.upstream),
        (("openai", "default_upstream"), settings.openai.default_upstream),
    ):
        if wanted is not None and wanted not in settings.upstreams:
            yield loc, (loc, *everywhere), f"there is no upstream {wanted}; there are: {known}"
    default = settings.upstreams.get(settings.openai.default_upstream or "")
    if default is not None and default.kind not in OPENAI_KINDS:
        here = ("openai", "default_upstream")
        kinds = " or ".join(OPENAI_KINDS)
        text = f"upstream {settings.openai.default_upstream} is of kind {default.kind}; it must be of kind {kinds}"
        yield here, (here, *everywhere), text


def _chat(settings: Settings) -> Iterator[Finding]:
    chat, here = settings.chat, ("chat", "model")
    if chat.upstream is None:
        if chat.model is not None:
            yield here, (("chat",),), "is a model of chat.upstream, which is not given"
        return
    upstream = settings.upstreams.get(chat.upstream)
    if upstream is None:  # _upstreams says so
        return
    rests: tuple[Loc, ...] = (("chat",), ("upstreams",))
    if upstream.kind == "coze":
        if chat.model is not None and upstream.aliases.get(chat.model, chat.model) not in upstream.bot_ids:
            yield here, rests, f"{chat.model} is none of the bots of upstreams.{chat.upstream}"
        return
    if chat.model is None:
        yield here, rests, f"is needed beside chat.upstream: a model of {chat.upstream}"
        return
    model = upstream.aliases.get(chat.model, chat.model)
    if any(fnmatchcase(model, glob) for glob in upstream.disabled_models):
        yield here, rests, f"{chat.model} is switched off by upstreams.{chat.upstream}.disabled_models"
    elif chat.model not in upstream.aliases and not any(fnmatchcase(model, glob) for glob in upstream.models or ("*",)):
        yield here, rests, f"{chat.model} is none of upstreams.{chat.upstream}.models"


def _of_its_kind(upstream: Upstream) -> Iterator[tuple[str, str]]:
    """What is wrong with the settings that belong to one kind: the setting's name, and the sentence."""
    for member, kind in SETTINGS_OF_ONE_KIND.items():
        if member in upstream.model_fields_set and kind != upstream.kind:
            yield member, f"is a setting of kind {kind}; this upstream is of kind {upstream.kind}"
    if upstream.kind == "coze":
        if not upstream.bot_ids:
            yield "bot_id", "is needed, or bots: [{name: …, bot_id: …}]"
        elif upstream.bots and upstream.bot_id is not None:
            yield "bot_id", "stands beside bots: one of the two"
        if "models" in upstream.model_fields_set:
            yield "models", "is no setting of kind coze, whose models are its bots"
        for model in upstream.aliases.values():
            if model not in upstream.bot_ids:
                yield "aliases", f"{model} is none of its bots"
    for field in upstream.headers if upstream.kind == "openai" else ():
        if field.lower() in KEY_HEADERS:
            yield "headers", f"{field} is a place of the key: keys stand in `keys`, and `key_header` says where they go"
