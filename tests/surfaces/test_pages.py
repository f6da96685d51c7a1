"""The documentation: that the document is what it says it is, and that nothing it describes answers with an internal error."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from balancer.surfaces.pages_document import OPERATIONS, document
from tests.surfaces.chats import ANN, Bot, bot

DOCUMENTS = ("/openapi.json", "/api/openapi.json")
PAGES = ("/docs", "/redoc", "/api/docs", "/api/redoc")


def test_the_document_is_openapi_3_1() -> None:
    tree = json.loads(document())
    assert tree["openapi"] == "3.1.0"
    validate(tree)


def test_every_operation_has_an_id_of_its_own() -> None:
    tree = json.loads(document())
    ids = [each["operationId"] for methods in tree["paths"].values() for each in methods.values()]
    assert len(ids) == len(set(ids)) == len(OPERATIONS)


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_anybody_may_read_the_document(tmp_path: Path, path: str) -> None:
    async with bot(tmp_path) as here:
        answer = await here.get(path, None)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.body == document()


@pytest.mark.parametrize("path", PAGES)
async def test_the_page_names_no_other_host_and_lets_nothing_in(tmp_path: Path, path: str) -> None:
    async with bot(tmp_path) as here:
        answer = await here.get(path, None)
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        text = answer.body.decode()
        assert not re.search(r"(?:src|href|@import|url\()\s*=?\s*[\"'(]?(?:https?:)?//", text)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        for element, directive in (("style", "style-src"), ("script", "script-src")):
            (inside,) = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert f"{directive} 'sha256-{digest}'" in policy
        (inside,) = re.findall(r'<script type="application/json" id="document">(.*?)</script>', text, re.DOTALL)
        assert json.loads(inside) == json.loads(document())


async def test_every_route_that_is_described_is_there(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        for operation in OPERATIONS:
            path = re.sub(r"\{\w+\}", "some-id-0001", operation.path)
            asked = operation.method.upper()
            answer = await here.call(asked, path, b"{}" if operation.body else None, None if operation.public else ANN)
            described = json.loads(document())["paths"][operation.path][operation.method]["responses"]
            assert str(answer.status) in described, (operation.path, answer.status, answer.body)
            assert answer.status != 405


async def test_a_route_that_is_not_public_asks_for_a_credential(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        for operation in OPERATIONS:
            path = re.sub(r"\{\w+\}", "some-id-0001", operation.path)
            answer = await here.call(operation.method.upper(), path, b"{}" if operation.body else None, None)
            assert (answer.status == 401) == (not operation.public or operation.path == "/auth/login"), operation.path


@pytest.mark.timeout(90)
async def test_no_request_that_the_document_allows_or_nearly_allows_meets_an_internal_error(tmp_path: Path) -> None:
    async with bot(tmp_path, conversations={"model": "oa/gpt-5.1"}) as here:
        code, said = await driven(here, tmp_path)
        assert code == 0, said[-4000:]
        assert f"Operations: {len(OPERATIONS)} selected" in " ".join(said.split()), said


async def driven(here: Bot, folder: Path) -> tuple[int, str]:
    """Exit code and words of a tool that sends what the document allows, and what is just beyond it."""
    (folder / "openapi.json").write_bytes(document())
    arguments = [
        *("run", str(folder / "openapi.json"), "--url", here.proxy.url, "-H", f"Authorization: Bearer {ANN}"),
        *("-c", "not_a_server_error", "--phases", "fuzzing", "-n", "8", "--seed", "1", "--no-color"),
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", *arguments),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()
