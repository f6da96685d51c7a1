"""curl on OpenAI's surface: what scripts send, signed in or not, and what the lists of good and bad input name.

What arrived of each of these requests is compared with what curl sent, byte for byte: hence the odd bodies.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from telling import MODEL, OTHER_TOKEN, TOKEN, URL, call, equal, holds, line

GPT = "oa/gpt-4o-mini"
CHAT = "/v1/chat/completions"
ASK = {"model": GPT, "messages": [{"role": "user", "content": "hello"}]}
ODD = (
    b'\r\n {"seed" :12345678901234567890,"x-unknown":{"model":"inner","e":1.50e+2} , '
    b'"messages":[ {"content":"gr\\u00fc\\u00dfe \\/ \xe4\xbd\xa0", "role":"user"}],'
    b'\t"stop" : [ ],"model"\n:  "oa/gpt-4o-mini" , "user":"\\ud83d\\ude00"}\n '
)
LARGE = bytes(range(256)) * 12_000


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    uploaded: int
    """Bytes of the request's body that went out."""

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def said(self) -> str:
        return self.json["choices"][0]["message"]["content"]

    @property
    def code(self) -> tuple[int, str]:
        return self.status, self.json["error"]["code"]


def curl(path: str, *arguments: str, token: str | None = TOKEN, data: bytes | None = None) -> Answer:
    """The answer, whatever its status. `data` is a body as it is."""
    command = ["curl", "-sS", "-i", "--noproxy", "*", "--path-as-is", "-w", "%{stderr}%{size_upload}"]
    command += [] if token is None else ["-H", f"Authorization: Bearer {token}"]
    command += [] if data is None else ["--data-binary", "@-"]
    done = subprocess.run([*command, *arguments, URL + path], input=data, capture_output=True, check=False)
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stdout[-500:]!r} {done.stderr[-500:]!r}")
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 1"):
        head, _, body = body.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return Answer(int(status.split()[1]), headers, body, int(done.stderr))


def post(path: str, body: object, *arguments: str, token: str | None = TOKEN) -> Answer:
    return curl(path, "-H", "content-type: application/json", *arguments, token=token, data=json.dumps(body).encode())


def chats() -> None:
    with call("chat/completions"):
        for model in (GPT, "gpt-4o-mini", "fast", f"gemini/{MODEL}"):
            equal(post(CHAT, ASK | {"model": model}).said, "You said: hello")
    with call("chat/completions (stream)"):
        for model in (GPT, f"gemini/{MODEL}"):
            stream = post(CHAT, ASK | {"model": model, "stream": True}, "-N").body
            holds(stream.endswith(b"data: [DONE]\n\n"), stream)
    with call("chat/completions (no content type)"):
        equal(curl(CHAT, data=json.dumps(ASK).encode()).said, "You said: hello")
    with call("chat/completions (odd body)"):
        equal(post(CHAT, ASK).status, 200)
        equal(curl(CHAT, data=ODD).said, "You said: grüße / 你")
    with call("chat/completions (model twice)"):
        equal(curl(CHAT, data=b'{"model": "gpt-0", ' + json.dumps(ASK).encode()[1:]).said, "You said: hello")
    with call("chat/completions (session members and fields)"):
        body = {"session_id": "s-1", "metadata": {"sessionId": "s-2"}} | ASK
        fields = (
            "X-Session-Id: s-3",
            "Cookie: a=b",
            "OpenAI-Organization: org-x",
            "OpenAI-Project: proj-x",
            "X-Own: kept",
        )
        equal(post(f"{CHAT}?session_id=s-4", body, *(each for field in fields for each in ("-H", field))).status, 200)
    with call("chat/completions (gzip up)"):
        packed = gzip.compress(json.dumps(ASK).encode())
        equal(curl(CHAT, "-H", "Content-Encoding: gzip", data=packed).said, "You said: hello")
    with call("embeddings (gzip down)"):
        wanted = {"model": "text-embedding-3-small", "input": "a"}
        answer = post("/v1/embeddings?coded", wanted, "-H", "Accept-Encoding: gzip")
        equal(answer.headers["content-encoding"], "gzip")
        equal(len(json.loads(gzip.decompress(answer.body))["data"]), 1)
    with call("base URLs and places of the credential"):
        for base in ("/openai/v1", "/v1beta/openai", "/s/a-session/v1", "/s/b/openai/v1", "", "/v1/"):
            equal(post(f"{base}/chat/completions", ASK).said, "You said: hello")
        for field in ("api-key", "x-api-key", "X-Session-Token"):
            equal(post(CHAT, ASK, "-H", f"{field}: {TOKEN}", token=None).said, "You said: hello")
        equal(post(f"{CHAT}?api_key={TOKEN}", ASK, token=None).said, "You said: hello")


def forms(folder: Path) -> None:
    large = folder / "large.bin"
    large.write_bytes(LARGE)
    made = curl("/v1/files", "-F", "purpose=user_data", "-F", f"file=@{large}").json
    with call("files (multipart, 3 MB)"):
        equal((made["bytes"], curl(f"/v1/files/{made['id']}/content").body == LARGE), (len(LARGE), True))
    with call("files of another client's (404)"):
        for path in (f"/v1/files/{made['id']}", f"/v1/files/{made['id']}/content"):
            equal(curl(path, token=OTHER_TOKEN).code, (404, "resource_not_found"))
        body = {"model": GPT, "input": [{"role": "user", "content": [{"type": "input_file", "file_id": made["id"]}]}]}
        equal(post("/v1/responses", body, token=OTHER_TOKEN).code, (404, "resource_not_found"))
        equal(curl("/v1/files", token=OTHER_TOKEN).json["data"], [])
        equal(curl(f"/v1/files/{made['id']}", "-X", "DELETE").json["deleted"], True)
    with call("audio/transcriptions (multipart)"):
        for fields in (("model=oa/whisper-1", f"file=@{large}"), (f"file=@{large};filename=a.mp3", "model=whisper-1")):
            answer = curl("/v1/audio/transcriptions", *(each for field in fields for each in ("-F", field)))
            holds(f"{len(LARGE)} bytes" in answer.json["text"], answer)
    with call("a wrong token (401 before the body)"):
        fields = ("-H", "Expect: 100-continue", "--expect100-timeout", "20", "-F", f"file=@{large}")
        answer = curl("/v1/files", *fields, token="nobody")
        equal((answer.code, answer.uploaded), ((401, "invalid_api_key"), 0))
        equal(answer.headers["www-authenticate"], "Bearer")


def sessions() -> None:
    """As scripts do it: sign in, cut out the token, bind a model, and name none any more."""
    with call("auth/login, auth/bind-model, chat without a model, auth/logout"):
        untold = {"messages": ASK["messages"]}
        token = post("/auth/login", {"api_key": TOKEN}, token=None).json["token"]
        equal((token[:4], len(token)), ("bal_", 47))
        equal(post(CHAT, untold, token=token).code, (400, "missing_required_parameter"))
        bound = post("/auth/bind-model", {"provider_name": "oa", "model_name": "gpt-4o-mini"}, token=token)
        equal((bound.status, bound.json["message"]), (200, "模型 oa/gpt-4o-mini 已绑定到 session"))
        equal(post(CHAT, untold, token=token).json["model"], "gpt-4o-mini")
        equal(post(CHAT, untold, "-H", f"X-Session-Token: {token}", token=None).said, "You said: hello")
        equal(post("/auth/logout", {}, token=token).json["message"], "登出成功")
        equal(post(CHAT, untold, token=token).code, (401, "invalid_api_key"))
    with call("auth/login (with a model)"):
        wanted = {"api_key": TOKEN, "provider_name": "oa", "model_name": "gpt-4o-mini"}
        token = post("/auth/login", wanted, token=None).json["token"]
        equal(post(CHAT, {"messages": ASK["messages"]}, token=token).said, "You said: hello")


def bad_input() -> None:
    with call("bad bodies (400)"):
        for body in (b"{", b"[]", b'"x"', b"", b'{"model": "\xff"}'):
            equal(curl(CHAT, data=body).code, (400, "invalid_json"))
        for body, param in (
            ({"model": GPT}, "messages"),
            (ASK | {"model": 5}, "model"),
            (ASK | {"model": ""}, "model"),
        ):
            answer = post(CHAT, body)
            equal((answer.status, answer.json["error"]["param"]), (400, param))
    with call("unknown URLs, methods, models (404, 405)"):
        equal(curl("/v1/chat/completionz").code, (404, "unknown_url"))
        equal(curl("/v1/organization/users").code, (404, "unknown_url"))
        equal(curl("/proxy/oa/v1/models").code, (404, "unknown_url"))
        answer = post("/v1/models", {})
        equal((answer.code, answer.headers["allow"]), ((405, "method_not_allowed"), "GET, HEAD"))
        equal(curl("/v1/models/nope").code, (404, "model_not_found"))
        equal(post(CHAT, ASK | {"model": "oa/gpt-0"}).code, (404, "model_not_found"))
    with call("models with raw and encoded slashes"):
        for name in (GPT, GPT.replace("/", "%2F")):
            equal(curl(f"/v1/models/{name}").json["id"], GPT)
    with call("all keys at rest (429, Retry-After)"):
        answer = post(CHAT, ASK | {"model": "busy/always-busy"})
        equal(answer.code, (429, "keys_resting"))
        holds(int(answer.headers["retry-after"]) >= 20, answer.headers)


line(client="curl (OpenAI)", version="any", transport="libcurl")
chats()
with tempfile.TemporaryDirectory() as place:
    forms(Path(place))
sessions()
bad_input()
