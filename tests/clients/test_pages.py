"""A list that is read page by page: a page token is good for the key that gave it, and for no other."""

from __future__ import annotations

from balancer.standin.app import StandIn, running
from tests.proxy import KEYS, Proxy, proxying


async def _pages(proxy: Proxy, path: str, member: str) -> list[str]:
    """The names of a whole list, with calls between the pages that move the rotation on."""
    names: list[str] = []
    token = ""
    while True:
        async with proxy.get(path, params={"pageSize": "2", "pageToken": token}) as answer:
            assert answer.status == 200, await answer.text()
            page = await answer.json()
        names += [each["name"] for each in page[member]]
        if not (token := page.get("nextPageToken", "")):
            return names
        async with proxy.post() as other:
            assert other.status == 200


async def test_the_pages_of_the_models_come_from_one_key() -> None:
    standin = StandIn(KEYS)
    async with running(standin) as upstream, proxying(upstream) as proxy:
        names = await _pages(proxy, "/v1beta/models", "models")
        assert len(names) == len(set(names)) > 10
        listed = {each.key for each in standin.requests if each.path == "/v1beta/models"}
        assert len(listed) == 1
        assert len({each.key for each in standin.requests}) == 3


async def test_the_pages_of_a_list_without_uploads_come_from_one_key() -> None:
    standin = StandIn(KEYS)
    async with running(standin) as upstream, proxying(upstream) as proxy:
        for _ in range(5 * len(KEYS)):
            async with proxy.post("/v1beta/cachedContents", json={"model": "models/gemini-2.5-flash"}) as made:
                assert made.status == 200
        assert len(await _pages(proxy, "/v1beta/cachedContents", "cachedContents")) == 5
