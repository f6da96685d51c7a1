"""How the commands are called: the parser, and what each says of itself, examples and exit codes, as `--help` shows it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balancer import __version__

MAIN = """\
A reverse proxy for LLM APIs that owns the API keys: put its address where a provider's base URL would go.

first steps:
  balancer serve --stand-in             try it without a key: answers come from a built-in stand-in
  GEMINI_API_KEYS=k1,k2 balancer serve  serve the Gemini API on http://127.0.0.1:8000
  balancer keys                         what the keys of the running process are doing
"""
CONVERSATIONS = """\
Write stored chats out, or delete old ones. Works beside a running proxy, a batch at a time; progress goes to standard error.
An export that was broken off goes on where its file ends, a purge by being called again.

examples:
  balancer conversations export --to chats.jsonl
  balancer conversations export --client team-a --older-than 90d > old.jsonl
  balancer conversations purge --older-than 365d --dry-run

exit codes: 0 done, 1 the database or the file cannot be used, 2 mistake in the configuration or the command
"""
SERVE = """\
Serve until SIGTERM or Ctrl-C; what runs then may finish. SIGHUP, or a change of the file, reads the configuration again.

examples:
  GEMINI_API_KEYS=k1,k2 balancer serve
  balancer serve --config /etc/balancer/config.yaml
  balancer serve --stand-in

exit codes: 0 stopped, 1 cannot listen, 2 mistake in the configuration, 3 an upstream has no keys
"""
CHECK = """\
Check a configuration, every mistake at once, and show what it comes to. Nothing is started; no secret is shown.

examples:
  balancer check-config
  balancer check-config --config /etc/balancer/config.yaml --quiet

exit codes: 0 valid, 2 mistakes, 3 valid but an upstream has no keys
"""
KEYS = """\
Show the keys of the running process: which are ready, which rest and until when, which are disabled and why.
Asks its admin listener (http://127.0.0.1:8001 by default). Keys appear as fingerprints, never in clear.

examples:
  balancer keys
  balancer keys --json | jq '.upstreams[].keys[] | select(.state != "ready")'
  balancer keys --url http://10.0.0.5:8001

exit codes: 0 every upstream has a ready key, 1 one has none, 2 mistake in the configuration, 4 not reachable
"""
HEALTH = """\
Ask the running process whether it can serve (GET /readyz): for container health checks and scripts.

examples:
  balancer health
  balancer health --url http://127.0.0.1:9000

exit codes: 0 ready, 1 not ready, 2 mistake in the configuration, 4 not reachable
"""
CREATE_SESSION = """\
Make a session of an achuan backend with a client token of the running process, and print its number: for scripts.

examples:
  balancer create-session --model gpt-5.1-high
  BALANCER_TOKEN=secret balancer create-session --model achuan/gpt-5.1-high --url https://llm.example.com
  balancer create-session --model gpt-5.1-high --json | jq .data.id

exit codes: 0 made, 1 not made, 2 mistake in the configuration
"""
DEPLOY = """\
List the files that are shipped for those who install this, print one, or write it to a directory.

examples:
  balancer deploy
  balancer deploy create-session.sh
  balancer deploy create-session.sh --to /usr/local/bin

exit codes: 0 done, 1 cannot be written, 2 no such file
"""
STAND_IN = """\
Run a stand-in upstream alone: a small honest server for trials, that answers without a model.

examples:
  balancer stand-in
  balancer stand-in --port 9001 --keys key-a,key-b
  balancer stand-in --kind openai --port 9002
  BALANCER_UPSTREAMS__GEMINI__BASE_URL=http://127.0.0.1:8090 GEMINI_API_KEYS=k1,k2,k3 balancer serve

exit codes: 0 stopped, 1 cannot listen
"""
DOCS = """\
Print a guide, or list the guides.

examples:
  balancer docs
  balancer docs configuration

exit codes: 0 printed, 2 no such guide
"""


def parser(runs: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The parser of the command line. `runs`: by name, what runs each command; the member `run` of what was parsed."""
    made: argparse.ArgumentParser = _documented(argparse.ArgumentParser, prog="balancer", text=MAIN)
    made.add_argument("--version", action="version", version=f"balancer {__version__}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, summary: str, text: str) -> Any:
        one = _documented(commands.add_parser, name, help=summary, text=text)
        one.set_defaults(run=runs[name])
        return one

    serve = command("serve", "start the proxy", SERVE)
    _config_option(serve)
    serve.add_argument(
        "--stand-in", action="store_true", help="answer from a built-in stand-in upstream: no keys needed"
    )

    check = command("check-config", "check a configuration and show what it comes to", CHECK)
    _config_option(check)
    check.add_argument("--quiet", action="store_true", help="print mistakes only; the exit code says the rest")

    keys = command("keys", "what the keys of the running process are doing", KEYS)
    _config_option(keys)
    keys.add_argument("--json", action="store_true", help="print the answer of the admin listener as it is")
    keys.add_argument("--url", help="admin listener to ask (default: admin.host and admin.port of the configuration)")

    health = command("health", "whether the running process can serve", HEALTH)
    _config_option(health)
    health.add_argument("--url", help="listener to ask (default: server.host and server.port of the configuration)")

    session = command("create-session", "make a session of an achuan backend", CREATE_SESSION)
    _config_option(session)
    session.add_argument("--model", required=True, help="model of the session, with or without its upstream")
    session.add_argument("--url", help="listener to ask (default: server.host and server.port of the configuration)")
    session.add_argument("--token", help="client token (default: BALANCER_TOKEN in the environment)")
    session.add_argument("--json", action="store_true", help="print the whole reply")

    deploy = command("deploy", "list, print or write the files shipped for an installation", DEPLOY)
    deploy.add_argument("file", metavar="FILE", nargs="?", help="which file (default: list them)")
    deploy.add_argument("--to", metavar="DIR", type=Path, help="write it there instead of printing it")

    stored = command("conversations", "write stored chats out, or delete old ones", CONVERSATIONS)
    _config_option(stored)
    stored.add_argument("action", choices=("export", "purge"), help="what to do with them")
    stored.add_argument("--client", metavar="NAME", help="those of this client only")
    stored.add_argument(
        "--older-than",
        metavar="TIME",
        type=_duration,
        help="those without activity for so long: 90d, 12h (purge needs it)",
    )
    stored.add_argument("--to", metavar="FILE", type=Path, help="export: write, or go on, in this file")
    stored.add_argument("--dry-run", action="store_true", help="tell how many there are, and do nothing")

    stand_in = command("stand-in", "run a stand-in upstream alone", STAND_IN)
    stand_in.add_argument(
        "--kind", choices=("gemini", "openai", "achuan", "coze"), default="gemini", help="which (default: %(default)s)"
    )
    stand_in.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    stand_in.add_argument("--port", type=_port, default=8090, help="port, 0 for any free one (default: %(default)s)")
    stand_in.add_argument(
        "--keys",
        help="keys it accepts, with commas between (default: k1,k2,k3; for achuan three tokens that it prints)",
    )

    docs = command("docs", "print a guide", DOCS)
    docs.add_argument("topic", metavar="TOPIC", nargs="?", help="which guide (default: list them)")
    return made


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


def _duration(text: str) -> float:
    from balancer.config.values import duration  # noqa: PLC0415

    try:
        return duration(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(f"{text} {wrong}") from None
