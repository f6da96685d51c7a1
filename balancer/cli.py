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

from balancer import __version__

if TYPE_CHECKING:
    from balancer.config import Settings

FINE, NOT_SERVING, MISTAKE, NO_KEYS, NOT_REACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130
ASK_TIMEOUT = 5.0
"""Seconds that a running process has to answer `keys` and `health`."""

_MAIN = """\
A reverse proxy for LLM APIs that owns the API keys: put its address where a provider's base URL would go.

first steps:
  balancer serve --stand-in             try it without a key: answers come from a built-in stand-in
  GEMINI_API_KEYS=k1,k2 balancer serve  serve the Gemini API on http://127.0.0.1:8000
  balancer keys                         what the keys of the running process are doing
"""
_SERVE = """\
Serve until SIGTERM or Ctrl-C; what runs then may finish. SIGHUP, or a change of the file, reads the configuration again.

examples:
  GEMINI_API_KEYS=k1,k2 balancer serve
  balancer serve --config /etc/balancer/config.yaml
  balancer serve --stand-in

exit codes: 0 stopped, 1 cannot listen, 2 mistake in the configuration, 3 an upstream has no keys
"""
_CHECK = """\
Check a configuration, every mistake at once, and show what it comes to. Nothing is started; no secret is shown.

examples:
  balancer check-config
  balancer check-config --config /etc/balancer/config.yaml --quiet

exit codes: 0 valid, 2 mistakes, 3 valid but an upstream has no keys
"""
_KEYS = """\
Show the keys of the running process: which are ready, which rest and until when, which are disabled and why.
Asks its admin listener (http://127.0.0.1:8001 by default). Keys appear as fingerprints, never in clear.

examples:
  balancer keys
  balancer keys --json | jq '.upstreams[].keys[] | select(.state != "ready")'
  balancer keys --url http://10.0.0.5:8001

exit codes: 0 every upstream has a ready key, 1 one has none, 2 mistake in the configuration, 4 not reachable
"""
_HEALTH = """\
Ask the running process whether it can serve (GET /readyz): for container health checks and scripts.

examples:
  balancer health
  balancer health --url http://127.0.0.1:9000

exit codes: 0 ready, 1 not ready, 2 mistake in the configuration, 4 not reachable
"""
_STAND_IN = """\
Run the stand-in upstream alone: a small honest Gemini for trials, that answers without a model.

examples:
  balancer stand-in
  balancer stand-in --port 9001 --keys key-a,key-b
  BALANCER_UPSTREAMS__GEMINI__BASE_URL=http://127.0.0.1:8090 GEMINI_API_KEYS=k1,k2,k3 balancer serve

exit codes: 0 stopped, 1 cannot listen
"""
_DOCS = """\
Print a guide, or list the guides.

examples:
  balancer docs
  balancer docs configuration

exit codes: 0 printed, 2 no such guide
"""


class Failure(Exception):
    """Ends the command: one line for standard error, and the exit code."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code (argparse itself exits after --help, --version and misuse)."""
    arguments = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _documented(argparse.ArgumentParser, prog="balancer", text=_MAIN)
    parser.add_argument("--version", action="version", version=f"balancer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str, text: str) -> Any:
        made = _documented(commands.add_parser, name, help=summary, text=text)
        made.set_defaults(run=run)
        return made

    serve = command("serve", _serve, "start the proxy", _SERVE)
    _config_option(serve)
    serve.add_argument(
        "--stand-in", action="store_true", help="answer from a built-in stand-in upstream: no keys needed"
    )

    check = command("check-config", _check_config, "check a configuration and show what it comes to", _CHECK)
    _config_option(check)
    check.add_argument("--quiet", action="store_true", help="print mistakes only; the exit code says the rest")

    keys = command("keys", _keys, "what the keys of the running process are doing", _KEYS)
    _config_option(keys)
    keys.add_argument("--json", action="store_true", help="print the answer of the admin listener as it is")
    keys.add_argument("--url", help="admin listener to ask (default: admin.host and admin.port of the configuration)")

    health = command("health", _health, "whether the running process can serve", _HEALTH)
    _config_option(health)
    health.add_argument("--url", help="listener to ask (default: server.host and server.port of the configuration)")

    stand_in = command("stand-in", _stand_in, "run the stand-in upstream alone", _STAND_IN)
    stand_in.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    stand_in.add_argument("--port", type=_port, default=8090, help="port, 0 for any free one (default: %(default)s)")
    stand_in.add_argument(
        "--keys", default="k1,k2,k3", help="keys it accepts, with commas between (default: %(default)s)"
    )

    docs = command("docs", _docs, "print a guide", _DOCS)
    docs.add_argument("topic", metavar="TOPIC", nargs="?", help="which guide (default: list them)")
    return parser


def _documented(make: Callable[..., Any], *names: str, text: str, **options: Any) -> Any:
    """A parser whose help shows the text as it is written: what it does first, examples and exit codes last."""
    description, _, epilog = text.partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    return make(*names, description=description, epilog=epilog, formatter_class=raw, **options)


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="configuration (default: config.yaml if there is one, else the defaults)",
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return port


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
    from balancer.server import serve

    try:
        return serve(arguments.config, settings, stand_in=arguments.stand_in, announce=_say, environ=os.environ)
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


def _health(arguments: argparse.Namespace) -> int:
    if arguments.url is None:
        server = _settings(arguments.config).server
        scheme = "https" if server.tls.cert else "http"
        url = f"{scheme}://{_callable_authority(server.host, server.port)}"
    else:
        url = arguments.url.rstrip("/")
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


def _get(url: str, token: str | None, *, verify: bool = True) -> tuple[int, bytes]:
    """Status and body. No proxy (it asks a process of ours) and no redirects (they would carry the token elsewhere)."""
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
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
        with opener.open(request, timeout=ASK_TIMEOUT) as answer:
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


# stand-in, docs --------------------------------------------------------------------------------------------------------


def _stand_in(arguments: argparse.Namespace) -> int:
    keys = [key.strip() for key in arguments.keys.split(",") if key.strip()]
    if not keys:
        raise Failure(MISTAKE, "--keys names no key; for example: --keys k1,k2")
    from balancer.standin.app import run

    def announce(line: str) -> None:
        if line.startswith("http"):
            _say(f"stand-in upstream on {line} with the keys {', '.join(keys)}")
        else:
            _complain(line)

    return run(arguments.host, arguments.port, keys, announce)


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


if __name__ == "__main__":
    sys.exit(main())
