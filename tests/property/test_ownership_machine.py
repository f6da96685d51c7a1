"""Whatever clients do, in whatever order: no request reaches a key that does not own what it names.

A real proxy before the stand-in, which knows the truth: what exists, whose it is, what it holds. The machine keeps beside it
what the documentation says the proxy may know, which is who was first to make or to name a thing since the last restart.
From both follows what every answer must be. Checked at every step:

- A client's request that names something reaches a key that has it, if any key has it; questions of the owner search (a bare
  GET of the name, without the mark that every request of a client carries) are the only ones that may reach others.
- What is another client's is a 404 and reaches no key at all; a list shows nothing of it.
- What was uploaded comes back byte for byte.
- A key that rests for the model is not asked for it.

After a restart nobody is known as a maker until it is used again: the first client to name a thing is taken for its maker
(balancer/docs/affinity.md), and the machine takes it for that too. BALANCER_STEPS=100000 runs it at length:

    BALANCER_STEPS=100000 pytest -s tests/property/test_ownership_machine.py
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from balancer.standin.app import StandIn
from balancer.standin.app import running as standing_in
from balancer.standin.record import Arrival
from balancer.standin.shelf import Resource
from balancer.state.base import UNCLAIMED
from tests.fakes import FakeClock
from tests.proxy import GENERATE, KEYS, Proxy, proxying

STEPS = int(os.environ.get("BALANCER_STEPS", "0"))
LIFE = 200 if STEPS else 60
"""Steps of one example."""
LIVES = 60
MODEL = "gemini-2.5-flash"
GOOGLE = "https://generativelanguage.googleapis.com"
TOKENS = {"ann": "token-of-ann-1", "bob": "token-of-bob-2", "eve": "token-of-eve-3"}
COLLECTIONS = ("cachedContents", "fileSearchStores", "newThings", "batches", "tunedModels")
LISTED = {"batches": "operations"}
REST = 60

CLIENTS = st.sampled_from(sorted(TOKENS))
SESSIONS = st.sampled_from([None, None, "s", "t"])
PICKS = st.integers(0, 1 << 16)
DATA = st.one_of(st.binary(max_size=40), st.integers(1, 40).map(lambda n: bytes(range(256)) * n * 16))
T = TypeVar("T")
Claims = dict[str, str]


@dataclass
class Answer:
    """An answer, and what reached the stand-in on its account."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent: list[Arrival]
    asked: list[Arrival]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def key(self) -> str:
        """The key that gave it."""
        assert self.sent, "it reached no key"
        return self.sent[-1].key or ""


@dataclass
class Pending:
    """An upload that has begun."""

    client: str
    url: str
    key: str
    data: bytes
    chosen: str | None


class Ownership(RuleBasedStateMachine):
    steps = 0
    lives = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.clock = FakeClock()
        self.standin = StandIn(KEYS, clock=self.clock)
        self.names: list[str] = []
        """Everything that ever was."""
        self.claims: dict[str, Claims] = {}
        """By name: the key that the proxy knows, for each client or for nobody in particular."""
        self.data: dict[tuple[str, str], bytes] = {}
        self.pending: list[Pending] = []
        self.resting: set[str] = set()
        self.minutes = 0
        type(self).lives += 1

    # The worlds below

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize()
    def begin(self) -> None:
        self.url = self.run(self.stack.enter_async_context(standing_in(self.standin)))
        self.proxies = AsyncExitStack()
        self.run(self._start_proxy())

    async def _start_proxy(self) -> None:
        tokens = {"tokens": ",".join(f"{name}={token}" for name, token in TOKENS.items())}
        proxy: Proxy = await self.proxies.enter_async_context(
            proxying(
                self.url,
                clock=self.clock,
                auth=tokens,
                relay={"max_wait": "0s"},
                admin={"port": None},
                logging={"level": "error"},
            )
        )
        self.proxy = proxy

    def teardown(self) -> None:
        try:
            if hasattr(self, "proxies"):
                self.run(self.proxies.aclose())
            self.run(self.stack.aclose())
            self.run(self.loop.shutdown_default_executor())
        finally:
            self.loop.close()

    # What is true

    def thing(self, key: str, name: str) -> Resource | None:
        return self.standin.world.shelf.get(self.standin.project(key), name)

    def owners(self, name: str) -> list[str]:
        """The keys that have it."""
        return [key for key in KEYS if self.thing(key, name) is not None]

    def pick(self, number: int, *collections: str) -> str | None:
        """One of the names so far, the younger ones more often."""
        known = [name for name in self.names if not collections or name.partition("/")[0] in collections]
        recent = known[-8:] if number % 3 else known
        return recent[number % len(recent)] if recent else None

    # What must follow

    def resolve(self, client: str, names: Iterable[str]) -> str | int | None:
        """What the proxy makes of these names: the one key for them, 404, 400, or None where it is free to choose."""
        owners: dict[str, str] = {}
        unknown = []
        for name in dict.fromkeys(names):
            known = self.claims.setdefault(name, {})
            if known and client not in known and UNCLAIMED not in known:
                return 404
            if client not in known and UNCLAIMED in known:
                known[client] = known.pop(UNCLAIMED)
            if client in known:
                owners[name] = known[client]
            else:
                unknown.append(name)
        if len(set(owners.values())) > 1:
            return 400
        for name in unknown:
            have = self.owners(name)
            if not have:
                continue
            self.claims[name][client] = owners[name] = have[0]
            if len(set(owners.values())) > 1:
                return 400
        return next(iter(owners.values()), None)

    def learned(self, client: str, name: str, key: str, *, made: bool = False) -> None:
        """An answer of this key to this client was about the name (`made`: it came to be), or mentioned it."""
        known = self.claims.setdefault(name, {})
        if made or not known or client in known or UNCLAIMED in known:
            known.pop(UNCLAIMED, None)
            known[client] = key
        if name not in self.names:
            self.names.append(name)

    def mentions(self, key: str, name: str) -> list[str]:
        """Files that an answer about a batch mentions."""
        found = self.thing(key, name)
        if found is None or not name.startswith("batches/"):
            return []
        metadata = found.data["metadata"]
        named = (metadata["inputConfig"].get("fileName"), metadata.get("output", {}).get("responsesFile"))
        return [each for each in named if each]

    # One request

    def call(
        self,
        client: str,
        session: str | None,
        method: str,
        path: str,
        body: Any = None,
        *,
        names: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Answer:
        """Send it, and check what holds for every request: where it went, by what it names."""
        type(self).steps += 1
        had = {name: self.owners(name) for name in names}
        rested = set(self.resting)
        fields = {"X-Step": "1", **(headers or {})}
        url = path if "://" in path else self.proxy.url + path
        if "://" not in path:
            fields["x-goog-api-key"] = TOKENS[client]
        if session is not None:
            fields["X-Session-Id"] = session
        if body is not None:
            data, fields["Content-Type"] = json.dumps(body).encode(), "application/json"
        self.standin.forget()

        async def send() -> tuple[int, Mapping[str, str], bytes]:
            async with self.proxy.client.request(method, url, headers=fields, data=data) as answer:
                return answer.status, answer.headers, await answer.read()

        status, given, content = self.run(send())
        arrivals = list(self.standin.requests)
        sent = [arrival for arrival in arrivals if arrival.header("x-step") is not None]
        asked = [arrival for arrival in arrivals if arrival.header("x-step") is None]
        for arrival in sent:
            for name, keys in had.items():
                assert not keys or arrival.key in keys, f"{method} {path} names {name} of {keys}, reached {arrival.key}"
            limited = arrival.fault == "rate-minute"
            if f"models/{MODEL}:" in arrival.target:
                assert arrival.key not in rested, f"{arrival.key} rests"
            if limited:
                assert arrival.key is not None
                rested.add(arrival.key)
                self.resting.add(arrival.key)
        for question in asked:
            assert question.method == "GET", question
            assert question.target.removeprefix("/v1beta/") in had, f"{question.target} was not asked for"
        assert status < 500, (status, content)
        return Answer(status, given, content, sent, asked)

    def check_refusal(self, answer: Answer, want: str | int | None) -> bool:
        """Whether the names alone decide the answer; then it must be that one, and nobody was asked."""
        if isinstance(want, int):
            assert answer.status == want, (answer.status, want, answer.body)
            assert not answer.sent
            assert not (want == 404 and answer.asked)
            return True
        if answer.status != 429:
            assert answer.sent, answer.body
        if isinstance(want, str):
            assert {arrival.key for arrival in answer.sent} <= {want}
        return False

    def limited(self, answer: Answer, want: str | int | None) -> bool:
        """Whether it is a 429, which must be true."""
        if answer.status != 429:
            return False
        assert (want in self.resting) if isinstance(want, str) else self.resting
        assert 1 <= int(answer.headers["Retry-After"]) <= REST
        return True

    # Making

    @rule(client=CLIENTS, session=SESSIONS, data=DATA, chosen=st.sampled_from([None, None, None, "mine", "yours"]))
    def start_upload(self, client: str, session: str | None, data: bytes, chosen: str | None) -> None:
        name = f"files/{chosen}" if chosen else None
        headers = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(len(data)),
        }
        about = {"file": {"mimeType": "text/plain"} | ({"name": name} if name else {})}
        answer = self.call(client, session, "POST", "/upload/v1beta/files", about, headers=headers)
        assert answer.status == 200, answer.body
        self.pending.append(Pending(client, answer.headers["X-Goog-Upload-URL"], answer.key, data, name))

    @precondition(lambda self: self.pending)
    @rule(number=PICKS, halves=st.booleans())
    def finish_upload(self, number: int, halves: bool) -> None:
        """With whichever proxy runs now."""
        upload = self.pending.pop(number % len(self.pending))
        parts = urlsplit(upload.url)
        url = f"{self.proxy.url}{parts.path}?{parts.query}"
        middle = len(upload.data) // 2 if halves else 0
        if middle:
            headers = {"X-Goog-Upload-Command": "upload", "X-Goog-Upload-Offset": "0"}
            answer = self.call(upload.client, None, "POST", url, headers=headers, data=upload.data[:middle])
            assert (answer.status, answer.key) == (200, upload.key)
        taken = upload.chosen is not None and self.thing(upload.key, upload.chosen) is not None
        headers = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": str(middle)}
        answer = self.call(upload.client, None, "POST", url, headers=headers, data=upload.data[middle:])
        assert answer.key == upload.key
        assert answer.headers["X-Goog-Upload-Status"] == ("cancelled" if taken else "final")
        assert answer.status == (409 if taken else 200), answer.body
        if not taken:
            name = answer.json["file"]["name"]
            self.data[upload.key, name] = upload.data
            self.learned(upload.client, name, upload.key, made=True)

    @rule(client=CLIENTS, session=SESSIONS, collection=st.sampled_from(COLLECTIONS), number=PICKS)
    def make(self, client: str, session: str | None, collection: str, number: int) -> None:
        names: list[str] = []
        path = f"/v1beta/{collection}"
        body: dict[str, Any] = {}
        file = self.pick(number, "files")
        match collection:
            case "cachedContents":
                body = {"model": f"models/{MODEL}"}
                if file is not None and number % 2:
                    names = [file]
                    body["contents"] = [{"parts": [{"fileData": {"fileUri": f"{GOOGLE}/v1beta/{file}"}}]}]
            case "batches":
                if file is None:
                    return
                names = [file]
                path = f"/v1beta/models/{MODEL}:batchGenerateContent"
                body = {"batch": {"inputConfig": {"fileName": file}}}
            case _:
                pass
        want = self.resolve(client, names)
        answer = self.call(client, session, "POST", path, body, names=names)
        if self.check_refusal(answer, want) or self.limited(answer, want):
            return
        if any(not self.owners(name) for name in names):
            assert answer.status == 403, answer.body
            return
        assert answer.status == 200, answer.body
        made = answer.json["metadata"]["tunedModel"] if collection == "tunedModels" else answer.json["name"]
        self.learned(client, made, answer.key, made=True)
        for name in names if collection == "batches" else ():
            self.learned(client, name, answer.key)

    # Using

    @precondition(lambda self: self.names)
    @rule(client=CLIENTS, session=SESSIONS, numbers=st.lists(PICKS, min_size=1, max_size=3), snake=st.booleans())
    def use(self, client: str, session: str | None, numbers: list[int], snake: bool) -> None:
        """Generate with files, a cache, a store, or by a tuned model."""
        picked = [self.pick(n, "files", "cachedContents", "fileSearchStores", "tunedModels") for n in numbers]
        given = list(dict.fromkeys(name for name in picked if name))
        parts: list[Any] = []
        body: dict[str, Any] = {}
        path = GENERATE
        names: list[str] = []
        for name in given:
            kind = name.partition("/")[0]
            if kind == "tunedModels":
                path = f"/v1beta/{name}:generateContent"
                names = [name, *(each for each in names if not each.startswith("tunedModels/"))]
                continue
            names.append(name)
            if kind == "files":
                uri = f"{GOOGLE}/v1beta/{name}"
                parts.append({"file_data": {"file_uri": uri}} if snake else {"fileData": {"fileUri": uri}})
            elif kind == "cachedContents":
                names = [each for each in names if each == name or not each.startswith("cachedContents/")]
                body["cachedContent"] = name
            else:
                stores = body.setdefault("tools", [{"fileSearch": {"fileSearchStoreNames": []}}])
                stores[0]["fileSearch"]["fileSearchStoreNames"].append(name)
        body["contents"] = [{"parts": [*parts, {"text": "hello"}]}]
        text = json.dumps(body)
        order = sorted(names, key=lambda name: -1 if name in path else text.index(name))
        want = self.resolve(client, order)
        answer = self.call(client, session, "POST", path, body, names=names)
        if self.check_refusal(answer, want) or self.limited(answer, want):
            return
        if any(not self.owners(name) for name in names):
            assert answer.status in (403, 404), answer.body
        else:
            assert answer.status == 200, answer.body

    @rule(client=CLIENTS, session=SESSIONS, number=PICKS)
    def point_in_text(self, client: str, session: str | None, number: int) -> None:
        name = self.pick(number, "files") or "files/none"
        body = {"contents": [{"parts": [{"text": f"See {GOOGLE}/v1beta/{name} there."}]}]}
        answer = self.call(client, session, "POST", GENERATE, body)
        assert not answer.asked
        if not self.limited(answer, None):
            assert answer.status == 200, answer.body

    @precondition(lambda self: self.names)
    @rule(client=CLIENTS, session=SESSIONS, number=PICKS)
    def look_at(self, client: str, session: str | None, number: int) -> None:
        name = self.pick(number)
        assert name is not None
        want = self.resolve(client, [name])
        answer = self.call(client, session, "GET", f"/v1beta/{name}", names=[name])
        if self.check_refusal(answer, want):
            return
        if not self.owners(name):
            assert answer.status in (403, 404), answer.body
            return
        assert answer.status == 200, answer.body
        assert answer.json["name"] == name
        self.learned(client, name, answer.key)
        for mentioned in self.mentions(answer.key, name):
            self.learned(client, mentioned, answer.key)

    @precondition(lambda self: self.data)
    @rule(client=CLIENTS, session=SESSIONS, number=PICKS, other=st.booleans())
    def download(self, client: str, session: str | None, number: int, other: bool) -> None:
        name = self.pick(number, "files")
        assert name is not None
        want = self.resolve(client, [name])
        path = f"/download/v1beta/{name}:download?alt=media" if other else f"/v1beta/{name}:download?alt=media"
        answer = self.call(client, session, "GET", path, names=[name])
        if self.check_refusal(answer, want):
            return
        if not self.owners(name):
            assert answer.status in (403, 404), answer.body
            return
        assert answer.status == 200, answer.body
        assert isinstance(want, str)
        uploaded = self.data.get((want, name))
        if uploaded is None:
            assert name.startswith("files/batch-")
        else:
            assert answer.body == uploaded

    @rule(client=CLIENTS, session=SESSIONS, collection=st.sampled_from(("files", *COLLECTIONS)))
    def list_all(self, client: str, session: str | None, collection: str) -> None:
        answer = self.call(client, session, "GET", f"/v1beta/{collection}?pageSize=1000")
        assert answer.status == 200, answer.body
        key = answer.key
        there = [item.name for item in self.standin.world.shelf.children(self.standin.project(key), collection)]
        for name in there:
            for each in (name, *self.mentions(key, name)):
                known = self.claims.setdefault(each, {})
                if not known:
                    known[UNCLAIMED] = key
                if each not in self.names:
                    self.names.append(each)
        shown = [item["name"] for item in answer.json.get(LISTED.get(collection, collection), [])]
        expected = [name for name in there if key in (self.claims[name].get(client), self.claims[name].get(UNCLAIMED))]
        assert sorted(shown) == sorted(expected)

    @precondition(lambda self: self.names)
    @rule(client=CLIENTS, session=SESSIONS, number=PICKS)
    def delete(self, client: str, session: str | None, number: int) -> None:
        name = self.pick(number)
        assert name is not None
        want = self.resolve(client, [name])
        answer = self.call(client, session, "DELETE", f"/v1beta/{name}?force=true", names=[name])
        if self.check_refusal(answer, want):
            return
        if answer.status != 200:
            assert answer.status in (403, 404), answer.body
            assert not isinstance(want, str) or self.thing(want, name) is None
            return
        assert isinstance(want, str)
        assert self.thing(want, name) is None
        self.data.pop((want, name), None)
        known = self.claims.get(name, {})
        known.pop(client, None)
        known.pop(UNCLAIMED, None)

    # What happens to the world

    @rule(key=st.sampled_from(KEYS))
    def limit_a_key(self, key: str) -> None:
        """Its next generate call meets its quota."""
        type(self).steps += 1
        if not any(each == key and fault.times for each, fault in self.standin.faults.listed()):
            self.standin.script(key, "rate-minute", times=1, target=f"models/{MODEL}:generateContent", seconds=REST)

    @precondition(lambda self: self.resting and self.minutes < 40)
    @rule()
    def a_minute_passes(self) -> None:
        type(self).steps += 1
        self.clock.advance(REST + 1)
        self.minutes += 1
        self.resting.clear()

    @precondition(lambda self: self.names)
    @rule(sure=st.integers(0, 9))
    def two_days_pass(self, sure: int) -> None:
        """Files and caches are gone, and what was known of them."""
        type(self).steps += 1
        if sure:
            return
        self.clock.advance(48 * 3600 + 1)
        self.minutes = 0
        self.resting.clear()
        self.claims.clear()

    @rule(sure=st.integers(0, 2))
    def restart_the_proxy(self, sure: int) -> None:
        type(self).steps += 1
        if sure:
            return

        async def again() -> None:
            await self.proxies.aclose()
            await self._start_proxy()

        self.run(again())
        self.resting.clear()
        self.claims.clear()


@pytest.mark.timeout(0 if STEPS else 60)
def test_no_request_reaches_a_key_that_does_not_own_what_it_names() -> None:
    Ownership.steps = Ownership.lives = 0
    rules = settings(
        max_examples=max(LIVES, STEPS // LIFE // 4),
        stateful_step_count=LIFE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    while True:
        run_state_machine_as_test(Ownership, settings=rules)
        if Ownership.steps >= STEPS:
            break
        print(f"{Ownership.steps} steps in {Ownership.lives} lives so far", flush=True)  # noqa: T201
    print(f"{Ownership.steps} steps in {Ownership.lives} lives")  # noqa: T201
