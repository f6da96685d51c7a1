"""curl: a conversation, a stream, and an upload by the three protocols of Google's documentation."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from telling import MODEL, URL, call, equal, holds, line

DATA = b"words " * 100_000


def curl(path: str, *arguments: str) -> bytes:
    """The body of an answer below 400."""
    url = path if "://" in path else URL + path
    command = ["curl", "-sS", "--fail-with-body", "--noproxy", "*", "-H", "x-goog-api-key: any-text", *arguments, url]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stdout[-500:]!r} {done.stderr[-500:]!r}")
    return done.stdout


def post(path: str, data: object, *arguments: str) -> bytes:
    return curl(path, "-H", "content-type: application/json", "-d", json.dumps(data), *arguments)


def said(answer: dict) -> str:
    return answer["candidates"][0]["content"]["parts"][0]["text"]


def conversation() -> None:
    talk = []
    with call("generateContent (three turns)"):
        for text in ("one", "two", "three"):
            talk.append({"role": "user", "parts": [{"text": text}]})
            answer = json.loads(post(f"/v1beta/models/{MODEL}:generateContent", {"contents": talk}))
            equal(said(answer), f"You said: {text}")
            talk.append(answer["candidates"][0]["content"])
    talk.append({"role": "user", "parts": [{"text": "four"}]})
    with call("streamGenerateContent?alt=sse"):
        stream = post(f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse", {"contents": talk}, "-N")
        events = [json.loads(event.removeprefix(b"data: ")) for event in stream.split(b"\r\n\r\n") if event]
        equal("".join(map(said, events)), "You said: four")
    with call("streamGenerateContent"):
        pieces = json.loads(post(f"/v1beta/models/{MODEL}:streamGenerateContent", {"contents": talk}, "-N"))
        equal("".join(map(said, pieces)), "You said: four")
    with call("countTokens"):
        equal(json.loads(post(f"/v1beta/models/{MODEL}:countTokens", {"contents": talk[:1]}))["totalTokens"], 1)
    with call("models with ?key="):
        holds(json.loads(curl("/v1beta/models?key=any-text"))["models"])


def uploads(folder: Path) -> None:
    data = folder / "data.txt"
    data.write_bytes(DATA)
    made = []
    with call("upload (resumable)"):
        head = folder / "head"
        start = {"Protocol": "resumable", "Command": "start", "Header-Content-Length": len(DATA)}
        fields = [each for name, value in start.items() for each in ("-H", f"X-Goog-Upload-{name}: {value}")]
        post("/upload/v1beta/files", {"file": {"displayName": "d"}}, "-D", str(head), *fields)
        lines = [each.partition(": ") for each in head.read_text().splitlines()]
        url = next(value for name, _, value in lines if name.lower() == "x-goog-upload-url")
        fields = ["-H", "X-Goog-Upload-Offset: 0", "-H", "X-Goog-Upload-Command: upload, finalize"]
        made.append(json.loads(curl(url, *fields, "--data-binary", f"@{data}"))["file"])
        equal(made[-1]["sizeBytes"], str(len(DATA)))
    with call("upload (raw)"):
        fields = ["-H", "X-Goog-Upload-Protocol: raw", "-H", "content-type: text/plain"]
        made.append(json.loads(curl("/upload/v1beta/files", *fields, "--data-binary", f"@{data}"))["file"])
    with call("upload (multipart)"):
        fields = ["-H", "X-Goog-Upload-Protocol: multipart", "-F", "metadata={};type=application/json"]
        made.append(json.loads(curl("/upload/v1beta/files", *fields, "-F", f"file=@{data};type=text/plain"))["file"])
    with call("generateContent with three files"):
        parts = [{"fileData": {"fileUri": file["uri"], "mimeType": "text/plain"}} for file in made]
        talk = [{"role": "user", "parts": [*parts, {"text": "look"}]}]
        equal(len(parts), 3)
        for _ in range(4):
            answer = json.loads(post(f"/v1beta/models/{MODEL}:generateContent", {"contents": talk}))
            equal(said(answer), "You said: look")
    with call("download"):
        for file in made:
            equal(curl(f"/download/v1beta/{file['name']}:download?alt=media"), DATA)
    with call("files get and list and delete"):
        for file in made:
            equal(json.loads(curl(f"/v1beta/{file['name']}"))["name"], file["name"])
            holds(file["name"] in curl("/v1beta/files").decode())
            curl(f"/v1beta/{file['name']}", "-X", "DELETE")


line(client="curl", version="any", transport="libcurl")
conversation()
with tempfile.TemporaryDirectory() as place:
    uploads(Path(place))
