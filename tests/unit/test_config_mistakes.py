"""What is wrong with a configuration is told all at once, with its place, and without its secrets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from balancer.config import ConfigError, Settings, load, parse
from balancer.config.checks import cross_checks
from balancer.config.overlay import all_places

SECRET = "AIzaSyD-a-key-that-nobody-may-read-01"


def problems(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ or {})
    return caught.value.problems


def gemini(settings: str) -> str:
    """A file whose upstream `gemini` has these settings."""
    return "upstreams:\n  gemini:\n" + "\n".join(f"    {line}" for line in settings.splitlines())


def test_a_file_with_six_mistakes_reports_six() -> None:
    found = problems(
        """
        server: {port: eight, host: 0.0.0.0}
        port: 8000
        relay: {timeouts: {idle: 5x}}
        upstreams:
          gemini:
            keys: [k1, k 2, k3, k1]
            base_url: ftp://h
        """
    )
    assert sorted(problem.partition(":")[0] for problem in found) == [
        "port",
        "relay.timeouts.idle",
        "server.host",
        "server.port",
        "upstreams.gemini.base_url",
        "upstreams.gemini.keys[1]",
        "upstreams.gemini.keys[3]",
    ]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("server: {prot: 1}", "server.prot: unknown setting (did you mean port?)"),
        ("port: 1", "port: unknown setting (did you mean server.port?)"),
        ("max_wait: 1", "max_wait: unknown setting (did you mean relay.max_wait?)"),
        ("upstream: {}", "upstream: unknown setting (did you mean upstreams?)"),
        (gemini("key: x"), "upstreams.gemini.key: unknown setting (did you mean keys?)"),
        ("server: [1]", "server: must be a mapping"),
        ("server: 8000", "server: must be a mapping"),
        ("server: {port: 70000}", 'server.port: must be 65535 or less, not "70000"'),
        ("server: {host: 'no host'}", "server.host: must be an address"),
        ("server: {host: 127.0.0.256}", "server.host: must be an address"),
        ("server: {host: 0.0.0.0}", "server.host: 0.0.0.0 can be reached from other machines, and without auth.tokens"),
        ("server: {host: '::'}", "server.host: :: can be reached"),
        ("server: {host: example.com}", "server.host: example.com can be reached"),
        ("server: {secret: short}", "server.secret: is too short"),
        ("server: {tls: {cert: config.yaml}}", "server.tls.key: is needed beside server.tls.cert"),
        ("server: {tls: {cert: none, key: config.yaml}}", "server.tls.cert: none is not a file"),
        ("server: {workers: 4}", "server.workers: 4 processes cannot share what memory:// keeps"),
        ("server: {workers: 0}", "server.workers: must be more than 0"),
        ("server: {max_body: off}", "server.max_body: cannot be switched off"),
        (
            "server: {trusted_proxies: [10.0.0.1/8]}",
            "server.trusted_proxies[0]: 10.0.0.1/8 is an address inside a range",
        ),
        ("server: {trusted_proxies: [proxy]}", "server.trusted_proxies[0]: must be an address or a range"),
        ("server: {public_url: example.com}", "server.public_url: must be an address like https://host"),
        ("admin: {host: 0.0.0.0}", "admin.host: 0.0.0.0 can be reached from other machines: set admin.token"),
        ("admin: {port: 8000}", "admin.port: 8000 is the port of server.port as well"),
        ("state: {url: 'redis://h'}", "state.url: redis:// is not available in this version"),
        ("state: {file: x}", "state.file: a journal of the state is not available in this version"),
        ("state: {url: nonsense}", "state.url: must be memory://"),
        ("affinity: {uploads: often}", "affinity.uploads: must be 'client', 'session' or 'none', not \"often\""),
        ("affinity: {session_ttl: 0}", "affinity.session_ttl: must be more than 0"),
        ("relay: {timeouts: {idle: 0}}", "relay.timeouts.idle: must be more than 0; `off` switches it off"),
        ("relay: {max_wait: off}", "relay.max_wait: cannot be switched off"),
        ("chat: {upstream: none-such}", "chat.upstream: there is no upstream none-such; there are: gemini"),
        ("openai: {allowed_origins: [a.example]}", "openai.allowed_origins[0]: must be an origin"),
        ("upstreams: {}", "upstreams: needs at least one upstream"),
        ("upstreams: {a/b: {kind: gemini}}", "upstreams.a/b: an upstream's name"),
        ("upstreams: {x: {}}", "upstreams.x.kind: is required"),
        ("upstreams: {x: {kind: gemni}}", "upstreams.x.kind: must be 'gemini'"),
        (
            "upstreams: {o: {kind: openai, keys: a, paths: [/a, b]}}",
            "upstreams.o.paths[1]: must be a path like /messages",
        ),
        ("upstreams: {o: {kind: openai, paths: [/a/../b]}}", "upstreams.o.paths[0]: must be a path like /messages"),
        ("upstreams: {o: {kind: openai, paths: [/a/]}}", "upstreams.o.paths[0]: must be a path like /messages"),
        (
            "upstreams: {o: {kind: openai, paths: [/v1/messages]}}",
            "upstreams.o.paths[0]: must be what stands behind /v1",
        ),
        ("upstreams: {openai: {key_header: bearer}}", "upstreams.openai.key_header: must be 'authorization'"),
        ("upstreams: {openai: {max_tokens_member: max}}", "upstreams.openai.max_tokens_member: must be 'max_tokens'"),
        ("upstreams: {openai: {headers: {Api-Key: a}}}", "upstreams.openai.headers: Api-Key is a place of the key"),
        (gemini("key_header: x-api-key"), "upstreams.gemini.key_header: is a setting of kind openai; this upstream is"),
        (gemini("paths: [/messages]"), "upstreams.gemini.paths: is a setting of kind openai"),
        (gemini("max_tokens_member: max_tokens"), "upstreams.gemini.max_tokens_member: is a setting of kind openai"),
        (gemini("raw: maybe"), "upstreams.gemini.raw[0]: must be true, false, or globs of paths"),
        (gemini("raw: [/a/../b]"), "upstreams.gemini.raw[0]: must be true, false, or globs of paths"),
        ("openai: {default_upstream: x}", "openai.default_upstream: there is no upstream x; there are: gemini"),
        ("upstreams: {achuan: {keys: k}}", "upstreams.achuan.base_url: is required"),
        (
            "upstreams: {openai: {renew_explicit: true}}",
            "upstreams.openai.renew_explicit: is a setting of kind achuan; this upstream is of kind openai",
        ),
        (
            "upstreams: {achuan: {base_url: 'https://h', fresh_history: all}}",
            "upstreams.achuan.fresh_history: must be 'none' or 'transcript', not \"all\"",
        ),
        ("upstreams: {coze: {keys: k}}", "upstreams.coze.bot_id: is needed, or bots: [{name: …, bot_id: …}]"),
        ("upstreams: {coze: {bot_id: a b}}", "upstreams.coze.bot_id: must be the id of a bot"),
        ("upstreams: {coze: {bot_id: 1, bots: [{name: a, bot_id: 2}]}}", "upstreams.coze.bot_id: stands beside bots"),
        (
            "upstreams: {coze: {bots: [{name: a, bot_id: 1}, {name: a, bot_id: 2}]}}",
            "upstreams.coze.bots[1]: has the same name as another: a",
        ),
        ("upstreams: {coze: {bot_id: 1, models: [m]}}", "upstreams.coze.models: is no setting of kind coze"),
        ("upstreams: {coze: {bot_id: 1, aliases: {fast: x}}}", "upstreams.coze.aliases: x is none of its bots"),
        (
            "{upstreams: {coze: {bot_id: 1}}, chat: {upstream: coze, model: poet}}",
            "chat.model: poet is none of the bots of upstreams.coze",
        ),
        (gemini("bot_id: 1"), "upstreams.gemini.bot_id: is a setting of kind coze; this upstream is of kind gemini"),
        (gemini("base_url: https://h/?a=b"), "upstreams.gemini.base_url: must not hold a query"),
        (gemini("base_url: https://u:p@h"), "upstreams.gemini.base_url: must not hold credentials"),
        (gemini("base_url: h"), "upstreams.gemini.base_url: must be an address"),
        (gemini("base_url: http://h:99999"), "upstreams.gemini.base_url: is not a URL"),
        (gemini("keys_file: none"), "upstreams.gemini.keys_file: none cannot be read: No such file"),
        (gemini("ca_file: none"), "upstreams.gemini.ca_file: none is not a file"),
        (gemini("keys: ['${X}', a]"), "upstreams.gemini.keys[0]: the environment variable X is not set"),
        (
            gemini("keys: [a, {key: b, wieght: 2}]"),
            "upstreams.gemini.keys[1].wieght: unknown setting (did you mean weight?)",
        ),
        (gemini("models: ['a[b']"), "upstreams.gemini.models[0]: has a [ without ]"),
        (gemini("aliases: {a: a}"), "upstreams.gemini.aliases.a: stands for itself"),
        (gemini("headers: {Host: a}"), "upstreams.gemini.headers: Host is set by the proxy itself"),
        ("server: {port: [", "line 1, column 17: "),
        ("server:\n  port: 1\n  port: 2\n", "line 3, column 3: server has this setting twice"),
        ("a: &a [*a]", "a[0]: an alias that holds itself"),
        ("- a", "the file must be a mapping"),
        ("a: \x00", "the file holds a character"),
    ],
)
def test_a_mistake_is_told_once_with_its_place(text: str, start: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(start)


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("BALANCER_SERVER__PROT", "unknown setting (did you mean port?)"),
        ("BALANCER_SEVER__PORT", "unknown setting (did you mean server?)"),
        ("BALANCER_SERVER__PORT__X", "unknown setting"),
        ("BALANCER_UPSTREAMS__GEMNI__KEYS", "there is no upstream gemni (did you mean gemini?)"),
        ("BALANCER_UPSTREAMS__GEMINI__KEY", "unknown setting (did you mean keys?)"),
        ("BALANCER___X", "unknown setting"),
    ],
)
def test_an_unknown_setting_in_the_environment_is_an_error(variable: str, said: str) -> None:
    (problem,) = problems("", {variable: SECRET})
    assert problem.startswith(f"{variable}: {said}")


def test_a_mistake_from_the_environment_names_the_variable() -> None:
    assert problems("", {"BALANCER_RELAY__MAX_WAIT": "soon"})[0].startswith(
        "relay.max_wait (BALANCER_RELAY__MAX_WAIT): "
    )


def test_a_line_that_an_env_file_cannot_hold_is_told_without_its_text(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("server: {port: x}\n")
    (tmp_path / ".env").write_text(f"A=1\n{SECRET}\nB='{SECRET}\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "config.yaml", {})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        ".env line 2",
        ".env line 3",
        "server.port",
    ]
    assert SECRET not in str(caught.value)


def test_doubled_keys_and_names_are_errors_that_name_both_places(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"k3\n{SECRET}\n")
    keys = f"['{SECRET}', k1, {{key: k1, name: a}}, {{key: k4, name: a}}, {{key: k5, name: a}}]"
    with pytest.raises(ConfigError) as caught:
        parse(gemini(f"keys: {keys}\nkeys_file: keys"), {}, tmp_path)
    assert caught.value.problems == [
        "upstreams.gemini.keys[2]: is the same key as upstreams.gemini.keys[1]",
        "upstreams.gemini.keys[4]: has the same name as upstreams.gemini.keys[3]: a",
        "upstreams.gemini.keys_file line 2: is the same key as upstreams.gemini.keys[0]",
    ]


@pytest.mark.parametrize(
    ("tokens", "place", "said"),
    [
        ("'a=x,a=y'", "auth.tokens[1]", "same name as auth.tokens[0]: a"),
        ("'a=x,b=x'", "auth.tokens[1]", "same secret as auth.tokens[0]"),
        ("'a=x,b='", "auth.tokens[1]", "nothing follows"),
        ("'c2VjcmV0=='", "auth.tokens[0]", "nothing follows"),
        ("'anonymous=x'", "auth.tokens[0]", "anonymous"),
        ("'a=bal_x'", "auth.tokens[0]", "bal_"),
        ("'a=x y'", "auth.tokens[0]", "holds a space"),
        ("[{name: a, token: sha256:12}]", "auth.tokens[0].token", "64 hex"),
        ("[{name: a}]", "auth.tokens[0].token", "is required"),
        ("[{name: a, token: ''}]", "auth.tokens[0].token", "is empty"),
        ("[{name: a/b, token: x}]", "auth.tokens[0].name", "letters, digits"),
        ("[{token: x, rpm: 0}]", "auth.tokens[0].rpm", "more than 0"),
        ("{a: x}", "auth.tokens", "must be a list"),
    ],
)
def test_a_token_that_could_not_work_is_an_error(tokens: str, place: str, said: str) -> None:
    (problem,) = problems(f"auth: {{tokens: {tokens}}}")
    assert problem.startswith(f"{place}: ")
    assert said in problem


def test_calls_without_a_model_go_only_where_all_of_openais_dialect_is_spoken() -> None:
    coze = {"kind": "coze", "base_url": "http://h", "bot_id": 1}
    settings = Settings.model_validate({"upstreams": {"c": coze}, "openai": {"default_upstream": "c"}})
    ((place, _, said),) = cross_checks(settings)
    assert place == ("openai", "default_upstream")
    assert said == "upstream c is of kind coze; it must be of kind openai or gemini"


def test_listening_elsewhere_is_allowed_with_tokens() -> None:
    assert parse("server: {host: 0.0.0.0}", {"BALANCER_TOKENS": "a=b"}).server.host == "0.0.0.0"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xfa", ""])
def test_a_file_that_cannot_be_read_is_a_mistake_of_the_configuration(
    tmp_path: Path, content: bytes | str | None
) -> None:
    path = tmp_path / "c.yaml"
    if content == "":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="the file cannot be read: "):
        load(path, {})


def test_an_anchor_and_a_merge_are_understood() -> None:
    text = "x: &limits {keys: a, models: [m]}\nupstreams: {gemini: {<<: *limits, keys: b}}"
    assert problems(text) == ["x: unknown setting"]
    text = "upstreams: {one: &one {kind: gemini, models: [m]}, two: {<<: *one, keys: b}}"
    assert parse(text, {}).upstreams["two"].models == ("m",)


MISPLACED = [
    gemini(f"keys: {SECRET} x"),
    gemini(f"keys: [[{SECRET}]]"),
    gemini(f"keys: [{{{SECRET}: }}]"),
    gemini(f"keys: {{{SECRET}: x}}"),
    gemini(f"keys: [{{key: {SECRET}, rpm: {SECRET}}}]"),
    gemini(f"{SECRET}: x"),
    gemini(f"base_url: https://u:{SECRET}@h"),
    gemini(f"base_url: https://h/?key={SECRET}"),
    gemini(f"proxy: socks5://u:{SECRET}@h"),
    gemini(f'headers: {{X-Key: "{SECRET}\\n"}}'),
    f"auth: {{tokens: '{SECRET} x'}}",
    f"auth: {{tokens: '{SECRET}='}}",
    f"auth: {{tokens: [{{token: [{SECRET}]}}]}}",
    f"auth: {{tokens: *{SECRET}}}",
    f"auth: {{tokens: !{SECRET} x}}",
    f"auth: {{tokens: !{SECRET}!x y}}",
    f"admin: {{token: [{SECRET}]}}",
    f"server: {{secret: {{{SECRET}: x}}}}",
    f"state: {{url: 'redis://:{SECRET}@h'}}",
    f"database: {{url: 'mysql://u:{SECRET}@h'}}",
    f"{SECRET}",
]


@pytest.mark.parametrize("text", MISPLACED)
def test_no_message_repeats_a_secret(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, {})
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)


ODD: list[Any] = [
    None,
    "",
    "x",
    SECRET,
    "-1",
    "[",
    "{",
    '{"a": 1}',
    "1,2",
    [],
    [None],
    [[]],
    ["x"],
    {},
    {"x": None},
    {"": [1]},
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_whatever_stands_anywhere_is_taken_or_told(odd: Any) -> None:
    for where in all_places():
        variable = "BALANCER_" + where.replace("*", "gemini").replace(".", "__").upper()
        value = odd if isinstance(odd, str) else json.dumps(odd)
        for text, environ in ((yaml.safe_dump(_tree(where.split("."), odd)), {}), ("", {variable: value})):
            with contextlib.suppress(ConfigError):
                parse(text, environ)


def _tree(steps: list[str], odd: Any) -> Any:
    """The value at this place; where an upstream's name or a list's position is left open, one stands there."""
    tree = odd
    for above, step in reversed(list(zip(["", *steps], steps, strict=False))):
        tree = [tree] if step == "*" and above != "upstreams" else {"gemini" if step == "*" else step: tree}
    return tree


OA = "{oa: {kind: openai, keys: k1, models: [gpt-*], disabled_models: [gpt-off], aliases: {fast: gpt-5.1}}}"


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        ("{model: gpt-5.1}", "chat.model: is a model of chat.upstream, which is not given"),
        ("{upstream: oa}", "chat.model: is needed beside chat.upstream: a model of oa"),
        ("{upstream: oa, model: o3}", "chat.model: o3 is none of upstreams.oa.models"),
        ("{upstream: oa, model: gpt-off}", "chat.model: gpt-off is switched off by upstreams.oa.disabled_models"),
        ("{upstream: ao, model: gpt-5.1}", "chat.upstream: there is no upstream ao; there are: oa"),
    ],
)
def test_the_chat_bot_needs_a_model_of_its_upstream(chat: str, problem: str) -> None:
    assert problems(f"chat: {chat}\nupstreams: {OA}") == [problem]


def test_the_chat_bot_s_model_may_be_an_alias() -> None:
    assert parse(f"chat: {{upstream: oa, model: fast}}\nupstreams: {OA}", {}).chat.model == "fast"
