"""The configuration: where values come from and what they become."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from balancer.config import ConfigError, Settings, load, parse
from balancer.config.overlay import all_places
from balancer.config.values import duration, is_loopback, size
from balancer.model import Timeouts, fingerprint

REFERENCE = Path(__file__).parents[2] / "config.yaml"
OF_ENTRIES = ("auth.tokens.", "upstreams.*.keys.", "upstreams.*.bots.")
"""Members of the entries of lists, which stand in comments."""
SECRET = "AIzaSyD-a-key-that-nobody-may-read-01"


def problems(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ or {})
    return caught.value.problems


def gemini(settings: str) -> str:
    """A file whose upstream `gemini` has these settings."""
    return "upstreams:\n  gemini:\n" + "\n".join(f"    {line}" for line in settings.splitlines())


# The reference file ------------------------------------------------------------------------------------------------------


def test_config_yaml_says_what_the_defaults_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = parse(REFERENCE.read_text(), {})
    monkeypatch.chdir(tmp_path)
    assert shipped == load(None, {})


def test_config_yaml_reads_the_same_variables_as_the_defaults() -> None:
    environ = {"SERVER_HOST": "::1", "SERVER_PORT": "9", "BALANCER_TOKENS": "a=b", "GEMINI_API_KEY": "k1"}
    assert parse(REFERENCE.read_text(), environ) == parse("", environ)
    assert parse("", environ).server.port == 9


def with_its_examples() -> str:
    """The reference with the upstreams that it only suggests."""
    return re.sub(r"^  # ( *[a-z_]+:)", r"  \1", REFERENCE.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEYS": "a,b", "OPENAI_API_KEY": "c"}, {"OPENAI_API_KEY": "c"}])
def test_the_upstreams_that_config_yaml_suggests_say_what_the_defaults_are(environ: dict[str, str]) -> None:
    suggested = parse(with_its_examples(), environ)
    assert list(suggested.upstreams) == ["gemini", "openai", "achuan", "coze"]
    needed = "base_url: 'https://ai.achuanai.cn', models: [claude-sonnet-4-5-20250929, gpt-5.1-high]"
    bot = "bot_id: 7379462189365198898"
    assert suggested == parse(f"upstreams: {{gemini: , openai: , achuan: {{{needed}}}, coze: {{{bot}}}}}", environ)


def test_every_setting_stands_in_config_yaml_with_a_comment() -> None:
    lines = with_its_examples().splitlines()
    shown = {}
    stack: list[tuple[yaml.MappingNode, str]] = [(_mapping(yaml.compose("\n".join(lines))), "")]
    while stack:
        node, above = stack.pop()
        for name, value in node.value:
            place = above + ("*" if above == "upstreams." else name.value)
            shown[place] = lines[name.start_mark.line]
            if isinstance(value, yaml.MappingNode) and value.value:
                stack.append((value, f"{place}."))
    wanted = {place for place in all_places() if not place.startswith(OF_ENTRIES)}
    assert wanted - set(shown) == set()
    sections = {"database", "upstreams", "upstreams.*", "logging"}
    assert [place for place in sorted(wanted - sections) if "  #" not in shown[place]] == []


def test_every_member_of_a_key_of_a_bot_and_of_a_token_is_named_in_config_yaml() -> None:
    text = REFERENCE.read_text()
    entries = [place for place in all_places() if place.startswith(OF_ENTRIES)]
    assert [place for place in entries if not re.search(rf"\b{place.rpartition('.')[2]}: ", text)] == []


def _mapping(node: yaml.Node | None) -> yaml.MappingNode:
    assert isinstance(node, yaml.MappingNode)
    return node


# Values ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("250ms", 0.25), ("30s", 30), ("5m", 300), ("1h", 3600), ("24h", 86400), ("30d", 2592000), ("1h30m", 5400)),
        *(("30", 30), ("0.5", 0.5), ("1.5h", 5400), (" 10 s ", 10), ("0", 0)),
    ],
)
def test_a_duration_becomes_seconds(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "5x", "-1s", "1h30", "30 seconds please", "1e3", "1,5s", "nan", "off", "99999999d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|longer"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("20MiB", 20 << 20), ("10MB", 10_000_000), ("1GiB", 1 << 30), ("4096", 4096), ("1.5KiB", 1536), ("1 kb", 1000)],
)
def test_a_size_becomes_bytes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "5 apples", "-1", "1M iB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        size(text)


@pytest.mark.parametrize("off", ["off", "OFF", "null", "~", "", "false", '"off"', "${UNSET:-off}", "${UNSET:-null}"])
def test_off_and_null_switch_off(off: str) -> None:
    settings = parse(f"relay:\n  timeouts:\n    idle: {off}\n", {})
    assert settings.relay.timeouts.idle is None


def test_timeouts_are_what_the_relay_takes() -> None:
    settings = parse("relay: {timeouts: {connect: 250ms, idle: off, total: 1h}}", {})
    assert settings.relay.timeouts.as_timeouts() == Timeouts(0.25, 300.0, None, 3600.0)


@pytest.mark.parametrize(
    ("text", "get", "value"),
    [
        ("server: {port: 0x10}", lambda s: s.server.port, "server.port"),
        ('server: {port: "9000"}', lambda s: s.server.port, 9000),
        ("server: {host: '[::1]'}", lambda s: s.server.host, "::1"),
        ("server: {trusted_proxies: 10.0.0.0/8}", lambda s: [str(n) for n in s.server.trusted_proxies], ["10.0.0.0/8"]),
        ("server: {public_url: https://a.example/x/}", lambda s: s.server.public_url, "https://a.example/x"),
        ("server: {drain_timeout: 0}", lambda s: s.server.drain_timeout, 0),
        ("admin: {port: off}", lambda s: s.admin.port, None),
        ("auth: {exempt_loopback: yes}", lambda s: s.auth.exempt_loopback, True),
        ("relay: {replay_limit: off}", lambda s: s.relay.replay_limit, 0),
        ("server:\n", lambda s: s.server.port, 8000),
        (gemini("base_url: http://h:1/p/"), lambda s: s.upstreams["gemini"].base_url, "http://h:1/p"),
        (gemini("models: [a-*, b]"), lambda s: s.upstreams["gemini"].models, ("a-*", "b")),
        (gemini("aliases: fast=m1, best=m2"), lambda s: s.upstreams["gemini"].aliases, {"fast": "m1", "best": "m2"}),
        ("upstreams: {b: {kind: gemini}, a: {kind: gemini}}", lambda s: list(s.upstreams), ["b", "a"]),
        ("", lambda s: s.upstreams["gemini"].models, None),
        (gemini("models:"), lambda s: s.upstreams["gemini"].models, None),
        (gemini("models: ['*']"), lambda s: s.upstreams["gemini"].models, ("*",)),
        (gemini("raw: true"), lambda s: s.upstreams["gemini"].raw, ("*",)),
        (gemini("raw: off"), lambda s: s.upstreams["gemini"].raw, ()),
        (gemini("raw: [/v1beta/models*, '*']"), lambda s: s.upstreams["gemini"].raw, ("/v1beta/models*", "*")),
        ("upstreams: {openai: }", lambda s: s.upstreams["openai"].base_url, "https://api.openai.com/v1"),
        (
            "upstreams: {achuan: {base_url: 'https://h', session_ttl: 2h, fresh_history: transcript}}",
            lambda s: (s.upstreams["achuan"].session_ttl, s.upstreams["achuan"].fresh_history),
            (7200, "transcript"),
        ),
        ("upstreams: {openai: {key_header: api-key}}", lambda s: s.upstreams["openai"].key_header, "api-key"),
        (
            "upstreams: {c: {kind: openai, paths: '/messages, /messages/count_tokens'}}",
            lambda s: s.upstreams["c"].paths,
            ("/messages", "/messages/count_tokens"),
        ),
        (
            "{upstreams: {a: {kind: openai}, b: {kind: gemini}}, openai: {default_upstream: b, resource_ttl: 7d}}",
            lambda s: (s.openai.default_upstream, s.openai.resource_ttl),
            ("b", 604800),
        ),
    ],
)
def test_a_setting_is_typed(text: str, get: Callable[[Settings], Any], value: Any) -> None:
    if value == "server.port":
        assert problems(text)[0].startswith("server.port: must be a whole number")
    else:
        assert get(parse(text, {})) == value


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse("", {}).server.port = 1


# Interpolation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "environ", "keys"),
    [
        ("${A}", {"A": "x"}, ["x"]),
        ("${A:-y}", {"A": "x"}, ["x"]),
        ("${A:-y}", {"A": ""}, ["y"]),
        ("${A:-${B:-}}", {}, []),
        ("${A:-${B:-z}}", {"B": "b"}, ["b"]),
        ("${A:-${B}}", {"A": "a"}, ["a"]),
        ("pre-${A}-post", {"A": "x"}, ["pre-x-post"]),
        ("$${A}", {"A": "x"}, ["${A}"]),
        ("${A}", {"A": "${B}"}, ["${B}"]),
        ("${A}", {"A": "x: [y]#z,0123"}, ["x:[y]#z", "0123"]),
        ("a$b", {}, ["a$b"]),
        ("0123", {}, ["0123"]),
        ("12345678901234567890", {}, ["12345678901234567890"]),
        ("1_000", {}, ["1_000"]),
        ("true", {}, ["true"]),
        ("1.50", {}, ["1.50"]),
    ],
)
def test_variables_are_replaced_in_values_and_keys_stay_text(
    written: str, environ: dict[str, str], keys: list[str]
) -> None:
    environ = {name: value.replace(": ", ":") for name, value in environ.items()}
    pool = parse(gemini(f"keys: {written}"), environ).upstreams["gemini"].pool
    assert [key.secret for key in pool] == keys


def test_a_variable_is_never_read_as_yaml() -> None:
    settings = parse("logging: {file: '${A}'}", {"A": "x\nserver: {port: 1}"}).logging
    assert settings.file == "x\nserver: {port: 1}"


def test_a_variable_is_typed_where_the_field_needs_it() -> None:
    text = "server: {port: '${P}', workers: '${W}'}\nauth: {exempt_loopback: '${E}'}\naffinity: {session_ttl: '${T}'}"
    settings = parse(text, {"P": "9000", "W": "1", "E": "true", "T": "5m"})
    assert (settings.server.port, settings.auth.exempt_loopback, settings.affinity.session_ttl) == (9000, True, 300)


@pytest.mark.parametrize(
    ("written", "said"),
    [("${A}", "the environment variable A is not set"), ("${A", "${NAME}"), ("${A-b}", "${NAME}"), ("${}", "${NAME}")],
)
def test_a_variable_that_cannot_be_replaced_is_told_with_its_place(written: str, said: str) -> None:
    (problem,) = problems(f"server: {{host: '{written}'}}")
    assert problem.startswith("server.host: ")
    assert said in problem


# Environment and .env ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "get", "wanted"),
    [
        ("BALANCER_SERVER__PORT", "9000", lambda s: s.server.port, 9000),
        ("BALANCER_RELAY__TIMEOUTS__IDLE", "off", lambda s: s.relay.timeouts.idle, None),
        ("BALANCER_RELAY__TIMEOUTS", '{"idle": "5s"}', lambda s: s.relay.timeouts.idle, 5),
        ("BALANCER_UPSTREAMS__GEMINI__BASE_URL", "http://h", lambda s: s.upstreams["gemini"].base_url, "http://h"),
        ("BALANCER_UPSTREAMS__EU_WEST_1__KEYS", "a,b", lambda s: len(s.upstreams["eu-west.1"].pool), 2),
        ("BALANCER_UPSTREAMS__GEMINI__MODELS", '["a", "b"]', lambda s: s.upstreams["gemini"].models, ("a", "b")),
        ("BALANCER_UPSTREAMS__GEMINI__MODELS", "a, b", lambda s: s.upstreams["gemini"].models, ("a", "b")),
        ("BALANCER_UPSTREAMS__GEMINI__HEADERS", '{"X-A": "1"}', lambda s: s.upstreams["gemini"].headers, {"X-A": "1"}),
        ("BALANCER_UPSTREAMS__MORE__KIND", "openai", lambda s: list(s.upstreams), ["gemini", "eu-west.1", "more"]),
        ("BALANCER_UPSTREAMS__GEMINI__MODELS", "", lambda s: s.upstreams["gemini"].models, None),
        ("BALANCER_UPSTREAMS__GEMINI__RAW", "true", lambda s: s.upstreams["gemini"].raw, ("*",)),
        ("BALANCER_AUTH__TOKENS", "a=${X}", lambda s: s.auth.tokens[0].token.get_secret_value(), "${X}"),
        ("BALANCER_TOKENS", "a=b", lambda s: len(s.auth.tokens), 1),
        ("BALANCER_PORT_8000_TCP", "tcp://10.0.0.1:8000", lambda s: s.server.port, 8001),
        ("balancer_server__port", "9", lambda s: s.server.port, 8001),
    ],
)
def test_the_environment_wins_over_the_file(
    variable: str, value: str, get: Callable[[Settings], Any], wanted: Any
) -> None:
    text = """
        server: {port: 8001}
        admin: {port: 8002}
        upstreams: {gemini: {models: [file]}, eu-west.1: {kind: gemini}}
    """
    assert get(parse(text, {variable: value})) == wanted


def test_a_value_that_the_environment_replaces_needs_no_variable() -> None:
    assert parse("server: {port: '${UNSET}'}", {"BALANCER_SERVER__PORT": "1"}).server.port == 1


def test_an_env_file_beside_the_configuration_counts_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("logging: {level: '${LEVEL}'}\n")
    (tmp_path / ".env").write_text(
        "\ufeff# comment\n\nexport GEMINI_API_KEYS='k1,k2' # two\nLEVEL=debug # comment\n"
        'FOREIGN.name="a \\"quoted\\" # text"\nBALANCER_SERVER__PORT = 9000\nEMPTY=\nDATABASE_URL=postgres://u:p@h/d\n'
    )
    settings = load(tmp_path / "config.yaml", {"LEVEL": "error"})
    assert (len(settings.upstreams["gemini"].pool), settings.server.port, settings.logging.level) == (2, 9000, "error")


def test_config_yaml_of_the_working_directory_is_used_when_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("server: {port: 1234}\n")
    monkeypatch.chdir(tmp_path)
    assert load(None, {}).server.port == 1234


# Keys and tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "keys"),
    [
        ({}, []),
        ({"GEMINI_API_KEYS": "a, b ,,c"}, ["a", "b", "c"]),
        ({"GEMINI_API_KEY": "b", "GOOGLE_API_KEY": "c"}, ["b"]),
        ({"GEMINI_API_KEYS": "", "GOOGLE_API_KEY": "c"}, ["c"]),
    ],
)
def test_keys_come_from_the_usual_variables(environ: dict[str, str], keys: list[str]) -> None:
    settings = parse("", environ)
    assert [key.secret for key in settings.upstreams["gemini"].pool] == keys
    assert settings.keyless_upstreams() == ([] if keys else ["gemini"])


@pytest.mark.parametrize(
    ("environ", "keys"),
    [({"OPENAI_API_KEYS": "a,b", "OPENAI_API_KEY": "c"}, ["a", "b"]), ({"OPENAI_API_KEY": "c"}, ["c"]), ({}, [])],
)
def test_the_upstream_named_openai_takes_its_own_variables(environ: dict[str, str], keys: list[str]) -> None:
    settings = parse("upstreams: {openai: , other: {kind: openai}}", {**environ, "GEMINI_API_KEY": "g"})
    assert [key.secret for key in settings.upstreams["openai"].pool] == keys
    assert settings.upstreams["other"].pool == ()


def test_an_upstream_that_only_borrows_a_providers_name_is_not_sent_its_keys() -> None:
    settings = parse("upstreams: {gemini: {kind: openai}}", {"GEMINI_API_KEYS": "g", "OPENAI_API_KEYS": "o"})
    assert settings.keyless_upstreams() == ["gemini"]


def test_the_usual_variables_go_to_no_other_upstream_and_not_beside_a_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k1 # the first\n\n# none\nk2\n")
    text = "upstreams: {gemini: {keys_file: keys}, other: {kind: gemini, base_url: 'http://elsewhere'}}"
    settings = parse(text, {"GEMINI_API_KEYS": "from-the-environment"}, tmp_path)
    assert [key.secret for key in settings.upstreams["gemini"].pool] == ["k1", "k2"]
    assert settings.keyless_upstreams() == ["other"]


def test_an_entry_of_keys_may_say_more_and_blank_entries_are_skipped() -> None:
    entry = "{key: k2, name: two, project: p, weight: 3, rpm: 1, rpd: 2, tpm: 3, concurrency: 4}"
    pool = (
        parse(gemini(f"keys: ['${{A:-}}', k1, {entry}, {{key: '${{A:-}}', name: off}}]"), {}).upstreams["gemini"].pool
    )
    assert [key.fingerprint for key in pool] == [fingerprint("k1"), fingerprint("k2")]
    two = pool[1]
    assert (two.name, two.project, two.weight, two.rpm, two.rpd, two.tpm, two.concurrency) == (
        "two",
        "p",
        3,
        1,
        2,
        3,
        4,
    )


def test_tokens_become_clients_by_the_digest_of_their_secret() -> None:
    digest = hashlib.sha256(b"s3").digest()
    entry = f"{{name: c, token: 'sha256:{digest.hex().upper()}', models: [m], rpm: 1, concurrency: 2, max_tokens: 3}}"
    settings = parse(f"auth: {{tokens: ['a=x=y', bare, {entry}]}}", {})
    clients = settings.clients()
    names = [clients[hashlib.sha256(secret).digest()].name for secret in (b"x=y", b"bare", b"s3")]
    assert names == ["a", fingerprint("bare"), "c"]
    limited = clients[digest]
    assert (limited.models, limited.rpm, limited.concurrency, limited.max_tokens) == (("m",), 1, 2, 3)


# Secrets ---------------------------------------------------------------------------------------------------------------


def full() -> Settings:
    return parse(
        """
        server: {secret: signing-secret-0123456789}
        admin: {token: admin-token}
        auth: {tokens: ["a=client-token", "sha256:%s"]}
        state: {url: "memory://:state-password@h"}
        upstreams:
          gemini:
            keys: [pool-key, {key: named-key, name: n}]
            proxy: http://user:proxy-password@h:3128
            headers: {X-Auth-Token: header-token, X-Version: version-1}
        """
        % ("0" * 64),
        {},
    )


def test_the_secrets_are_told_for_redaction_and_nowhere_else() -> None:
    settings = full()
    secrets = {"signing-secret-0123456789", "admin-token", "client-token", "state-password", "pool-key", "named-key"}
    assert settings.secret_texts() == secrets | {"proxy-password", "header-token"}
    told = repr(settings) + str(settings) + repr(settings.upstreams["gemini"].pool) + repr(settings.auth.tokens)
    assert [secret for secret in settings.secret_texts() if secret in told] == []
    dumped = json.dumps(settings.model_dump(mode="json", exclude={"upstreams": {"gemini": {"proxy", "headers"}}}))
    assert [secret for secret in ("pool-key", "named-key", "client-token", "admin-token") if secret in dumped] == []


def test_the_signing_key_is_the_same_wherever_the_keys_are_the_same() -> None:
    one, two = (parse(gemini(f"keys: {keys}"), {}).signing_key for keys in ("a,b", "[b, {key: a, name: x}]"))
    assert one == two
    assert len(one) == 32
    assert parse(gemini("keys: a,c"), {}).signing_key != one


def test_the_signing_key_follows_the_secret_and_without_any_secret_nobody_can_guess_it() -> None:
    own = "server: {secret: a-long-enough-secret}\n"
    assert parse(own + gemini("keys: a"), {}).signing_key == parse(own + gemini("keys: b"), {}).signing_key
    keyless = parse("", {})
    assert keyless.signing_key == keyless.signing_key
    assert keyless.signing_key != parse("", {}).signing_key


# Ways out ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "environ", "proxy"),
    [
        ("", {}, None),
        ("", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("", {"https_proxy": "p:1", "HTTPS_PROXY": "http://q:1"}, "http://p:1"),
        ("", {"HTTP_PROXY": "http://p:1"}, None),
        ("base_url: http://h", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("base_url: http://127.0.0.1:8090", {"HTTP_PROXY": "http://p:1"}, None),
        ("", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.com, .googleapis.com"}, None),
        ("", {"HTTPS_PROXY": "http://p:1", "no_proxy": "*"}, None),
        ("", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.com"}, "http://p:1"),
        ("proxy: off", {"HTTPS_PROXY": "http://p:1"}, None),
        ("proxy: http://own:2/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "http://own:2"),
    ],
)
def test_the_proxy_is_the_upstreams_own_or_the_environments(
    settings: str, environ: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    text = gemini(settings) if settings else ""
    assert parse(text, environ).upstreams["gemini"].egress_proxy == proxy


def test_the_ca_file_is_the_upstreams_own_or_the_environments(tmp_path: Path) -> None:
    own, general = tmp_path / "own.pem", tmp_path / "general.pem"
    own.touch()
    general.touch()
    environ = {"SSL_CERT_FILE": os.fspath(general)}
    text = "upstreams: {gemini: {ca_file: own.pem}, plain: {kind: gemini}}"
    upstreams = parse(text, environ, tmp_path).upstreams
    assert [each.egress_ca_file for each in upstreams.values()] == [os.fspath(own), os.fspath(general)]
    (problem,) = problems("", {"SSL_CERT_FILE": "/none"})
    assert "SSL_CERT_FILE names /none, which is not a file" in problem


def test_relative_paths_count_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("logging: {file: log.txt}\n")
    assert load(tmp_path / "c.yaml", {}).logging.file == os.fspath(tmp_path / "log.txt")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "::ffff:10.0.0.1")),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, local: bool) -> None:
    assert is_loopback(host) is local
