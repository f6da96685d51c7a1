"""The command line: the only place that prints.

A command imports what it needs when it runs, so `--help` and `--version` answer at once. Exit codes are the same for all
commands: 0 fine, 1 it runs but cannot serve, 2 a mistake in the configuration or the command, 3 no keys, 4 not reachable,
130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer import usage

if TYPE_CHECKING:
    from balancer.config import Settings

FINE, NOT_SERVING, MISTAKE, NO_KEYS, NOT_REACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130
ASK_TIMEOUT = 5.0
"""Seconds that a running process has to answer `keys` and `health`."""
CREATE_TIMEOUT = 120.0
"""Seconds for `create-session`: keys may rest, and the backend takes its time."""


class Failure(Exception):
    """Ends the command: one line for standard error, and the exit code."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code (argparse itself exits after --help, --version and misuse)."""
    arguments = usage.parser(COMMANDS).parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except Failure as failure:
        _complain(str(failure))
        return failure.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE


def _say(line: str = "") -> None:
    print(line, flush=True)


def _complain(line: str) -> None:
    print(f"balancer: {line}", file=sys.stderr, flush=True)


# serve, check-config ---------------------------------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments.config)
    keyless = settings.keyless_upstreams()
    if keyless and not arguments.stand_in:
        raise Failure(NO_KEYS, f"{_without_keys(keyless)} To try it without keys: balancer serve --stand-in")
    from balancer.conversations.base import DatabaseRefused
    from balancer.server import serve

    try:
        return serve(arguments.config, settings, stand_in=arguments.stand_in, announce=_say, environ=os.environ)
    except DatabaseRefused as refused:
        raise Failure(NOT_SERVING, f"database.url: {refused.reason}") from None
    except OSError as refused:
        raise Failure(NOT_SERVING, f"cannot listen: {refused.strerror or refused}") from None


def _settings(config: Path | None) -> Settings:
    """The settings; mistakes are printed, each in a line of its own, and end the command."""
    from balancer.config import ConfigError, find_config, load

    try:
        return load(config, os.environ)
    except ConfigError as error:
        name = find_config(config) or "built-in defaults"
        for problem in error.problems:
            print(f"{name}: {problem}", file=sys.stderr)
        count = len(error.problems)
        line = (
            f"{count} mistake{'s' if count > 1 else ''} in the configuration; balancer docs configuration explains it"
        )
        raise Failure(MISTAKE, line) from None


def _without_keys(names: Sequence[str]) -> str:
    """What is missing and what to do about it."""
    which = f"upstream{'s' if len(names) > 1 else ''} {', '.join(names)}"
    variables = "GEMINI_API_KEYS=key1,key2 (environment or .env), or " if "gemini" in names else ""
    settings = f"keys or keys_file of upstreams.{names[0]}"
    return f"no keys for {which}. Set {variables}{settings}."


def _check_config(arguments: argparse.Namespace) -> int:
    from balancer.config import find_config

    settings = _settings(arguments.config)
    keyless = settings.keyless_upstreams()
    if arguments.quiet:
        return NO_KEYS if keyless else FINE
    _say(f"{find_config(arguments.config) or 'built-in defaults'}: valid")
    for line in _summary(settings):
        _say(line)
    if keyless:
        raise Failure(NO_KEYS, _without_keys(keyless))
    return FINE


def _summary(settings: Settings) -> Iterator[str]:
    scheme = "https" if settings.server.tls.cert else "http"
    yield f"  clients    {scheme}://{_authority(settings.server.host, settings.server.port)}"
    admin = settings.admin
    yield f"  operators  {'off' if admin.port is None else f'http://{_authority(admin.host, admin.port)}'}"
    for name, upstream in settings.upstreams.items():
        count = len(upstream.pool)
        proxy = " through a proxy" if upstream.egress_proxy else ""
        yield f"  upstream   {name} ({upstream.kind}): {count} key{'' if count == 1 else 's'}, {upstream.base_url}{proxy}"
    names = ", ".join(entry.client.name for entry in settings.auth.tokens)
    yield f"  callers    {names or 'anybody on this machine (no auth.tokens)'}"


# keys, health ----------------------------------------------------------------------------------------------------------


def _keys(arguments: argparse.Namespace) -> int:
    from balancer.keytable import key_table

    settings = _settings(arguments.config)
    if arguments.url is None and settings.admin.port is None:
        raise Failure(NOT_REACHABLE, "admin.port is off in this configuration: give --url, or switch the listener on")
    url = arguments.url or f"http://{_callable_authority(settings.admin.host, settings.admin.port)}"
    token = settings.admin.token.get_secret_value() if settings.admin.token else None
    status, body = _get(f"{url.rstrip('/')}/api/keys", token)
    if status in (401, 403):
        raise Failure(
            NOT_REACHABLE, f"{url} refuses to tell ({status}): admin.token here must be the one it was started with"
        )
    try:
        answer = json.loads(body)
        lines = list(key_table(answer))
        ready = all(any(key["state"] == "ready" for key in each["keys"]) for each in answer["upstreams"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Failure(NOT_REACHABLE, f"{url} answered {status}, but not as balancer's admin listener does") from None
    _say(body.decode() if arguments.json else "\n".join(lines))
    return FINE if ready else NOT_SERVING


def _listener_url(arguments: argparse.Namespace) -> str:
    """The listener for clients: the one that was named, else that of the configuration."""
    if arguments.url is not None:
        url: str = arguments.url
        return url.rstrip("/")
    server = _settings(arguments.config).server
    scheme = "https" if server.tls.cert else "http"
    return f"{scheme}://{_callable_authority(server.host, server.port)}"


def _health(arguments: argparse.Namespace) -> int:
    url = _listener_url(arguments)
    status, body = _get(f"{url}/readyz", None, verify=arguments.url is not None)
    if status == 200:
        _say(f"ready: {url}")
        return FINE
    try:
        why = json.loads(body)["reason"]
    except (ValueError, KeyError, TypeError):
        why = f"GET /readyz answered {status}"
    _say(f"not ready: {url}: {why}")
    return NOT_SERVING


def _get(
    url: str, token: str | None, *, verify: bool = True, content: bytes | None = None, timeout: float = ASK_TIMEOUT
) -> tuple[int, bytes]:
    """Status and body; with `content` it is a POST of that JSON.

    No proxy (it asks a process of ours) and no redirects (they would carry the token elsewhere).
    """
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    class NoRedirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    context = ssl.create_default_context()
    if not verify:
        # The address comes from the configuration, the certificate is made for the name that clients use.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    direct = urllib.request.ProxyHandler({})
    opener = urllib.request.build_opener(direct, NoRedirects, urllib.request.HTTPSHandler(context=context))
    try:
        if not url.startswith(("http://", "https://")):
            raise Failure(MISTAKE, f"{url} is no http:// or https:// address")
        request = urllib.request.Request(url, content)  # noqa: S310
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        if content is not None:
            request.add_header("Content-Type", "application/json")
        with opener.open(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise Failure(
            NOT_REACHABLE,
            f"no answer from {url} ({why}): is it running (balancer serve)? Another address: --url or --config",
        ) from None


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _callable_authority(host: str, port: int | None) -> str:
    """Where a listener on this host is reached from the same machine."""
    return _authority({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port or 0)  # noqa: S104


# create-session, deploy ------------------------------------------------------------------------------------------------


def _create_session(arguments: argparse.Namespace) -> int:
    url = f"{_listener_url(arguments)}/api/chat/session"
    token = arguments.token or os.environ.get("BALANCER_TOKEN") or None
    content = json.dumps({"model": arguments.model}).encode()
    try:
        status, body = _get(url, token, verify=arguments.url is not None, content=content, timeout=CREATE_TIMEOUT)
    except Failure as failure:
        raise Failure(failure.code if failure.code == MISTAKE else NOT_SERVING, str(failure)) from None
    try:
        reply = json.loads(body)
        if status != 200:
            raise Failure(NOT_SERVING, f"{url} answered {status}: {reply['msg']}")
        number = int(reply["data"]["id"])
    except (ValueError, KeyError, TypeError):
        raise Failure(NOT_SERVING, f"{url} answered {status}, but not as balancer does") from None
    _say(json.dumps(reply, separators=(",", ":")) if arguments.json else f"Session ID: {number}")
    return FINE


def _deploy(arguments: argparse.Namespace) -> int:
    from importlib.resources import files

    shipped = {each.name: each for each in files("balancer").joinpath("deploy").iterdir() if each.is_file()}
    if arguments.file is None:
        for name in sorted(shipped):
            _say(name)
        _say("\nbalancer deploy FILE prints one, with --to DIR it is written there.")
        return FINE
    if arguments.file not in shipped:
        raise Failure(MISTAKE, f"no file {arguments.file}; there are: {', '.join(sorted(shipped))}")
    content = shipped[arguments.file].read_bytes()
    if arguments.to is None:
        _say(content.decode().replace("\r\n", "\n").rstrip())
        return FINE
    target: Path = arguments.to / arguments.file
    try:
        target.write_bytes(content)
        if content.startswith(b"#!"):
            target.chmod(0o755)
    except OSError as refused:
        raise Failure(NOT_SERVING, f"{target} cannot be written: {refused.strerror or refused}") from None
    _say(str(target))
    return FINE


def _conversations(arguments: argparse.Namespace) -> int:
    import asyncio

    from balancer.archiving import chosen, export, purge
    from balancer.conversations.base import StorageUnavailable
    from balancer.conversations.opening import sqlite_path

    if arguments.action == "purge" and arguments.older_than is None:
        raise Failure(MISTAKE, "purge needs --older-than; for example: --older-than 365d")
    url = _settings(arguments.config).database.url
    if url.startswith("sqlite:") and not sqlite_path(url).exists():
        raise Failure(NOT_SERVING, "there is no database: nothing was ever stored")
    which, dry = chosen(arguments.client, arguments.older_than), arguments.dry_run
    try:
        if arguments.action == "purge":
            asyncio.run(purge(url, which, _complain, dry=dry))
        else:
            asyncio.run(export(url, which, arguments.to or sys.stdout.buffer, _complain, dry=dry))
    except StorageUnavailable as refused:
        raise Failure(NOT_SERVING, f"stored chats cannot be used: {refused.reason}") from None
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as refused:
        raise Failure(NOT_SERVING, str(refused)) from None
    return FINE


# stand-in, docs --------------------------------------------------------------------------------------------------------


def _stand_in(arguments: argparse.Namespace) -> int:
    from balancer.standin.base import serve
    from balancer.standin.kinds import KINDS

    kind = KINDS[arguments.kind]
    bots = " and any bot" if arguments.kind == "coze" else ""
    default = kind.keys if arguments.kind == "achuan" else ("k1", "k2", "k3")
    keys = default if arguments.keys is None else [key.strip() for key in arguments.keys.split(",") if key.strip()]
    if not keys:
        raise Failure(MISTAKE, "--keys names no key; for example: --keys k1,k2")

    def announce(line: str) -> None:
        if line.startswith("http"):
            _say(f"stand-in upstream on {line}{kind.path} with the keys {', '.join(keys)}{bots}")
        else:
            _complain(line)

    return serve(kind.make(keys), arguments.host, arguments.port, announce)


def _docs(arguments: argparse.Namespace) -> int:
    from importlib.resources import files

    guides = {guide.name.removesuffix(".md"): guide for guide in files("balancer").joinpath("docs").iterdir()}
    topics = sorted(topic for topic, guide in guides.items() if guide.name.endswith(".md"))
    if arguments.topic is None:
        for topic in topics:
            heading = guides[topic].read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            _say(f"{topic:15} {heading}")
        _say(textwrap.dedent("\n    balancer docs TOPIC prints one."))
        return FINE
    if arguments.topic not in topics:
        raise Failure(MISTAKE, f"no guide {arguments.topic}; there are: {', '.join(topics)}")
    _say(guides[arguments.topic].read_text(encoding="utf-8").rstrip())
    return FINE


COMMANDS = {
    "serve": _serve,
    "check-config": _check_config,
    "keys": _keys,
    "health": _health,
    "create-session": _create_session,
    "deploy": _deploy,
    "conversations": _conversations,
    "stand-in": _stand_in,
    "docs": _docs,
}
"""By name, what runs each command; how they are called is in `usage`."""


if __name__ == "__main__":
    sys.exit(main())
