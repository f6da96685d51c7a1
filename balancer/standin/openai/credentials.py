"""Who calls: one key, in the one place that this stand-in was told of. Anything beside it is a credential too many."""

from __future__ import annotations

from balancer.standin.answers import Reply
from balancer.standin.openai import answers
from balancer.standin.openai.ask import Ask

_PLACES = ("x-api-key", "api-key", "x-goog-api-key")
_QUERY = ("key", "api_key", "session_token")
_PROTOCOL = "openai-insecure-api-key."


def admit(ask: Ask) -> Reply | None:
    """Note key and project on the arrival. A refusal, or None: come in."""
    world, arrival = ask.world, ask.arrival
    if not ask.name:
        return answers.unknown_url(arrival.method, arrival.path)
    given = _given(ask)
    named = given.get(world.key_header) or (given.get("protocol") if ask.name == "realtime" else None)
    if len(set(given.values())) > 1:
        return answers.error(400, "Multiple authentication credentials received. Please pass only one.")
    if named is None:
        return answers.no_key()
    key = world.key_of(named) or named
    arrival.key = key
    project = "plain" if world.open_to_all else world.keys.get(key)
    if project is None:
        return answers.wrong_key(key)
    arrival.project = project
    wanted = arrival.header("openai-project")
    if wanted is not None and wanted != project:
        return answers.error(401, "OpenAI-Project header should match project for API key", code="mismatched_project")
    if arrival.header("openai-organization") not in (None, dict(answers.FRAME)["openai-organization"]):
        return answers.error(
            401, "OpenAI-Organization header should match organization for API key", code="mismatched_organization"
        )
    return None


def _given(ask: Ask) -> dict[str, str]:
    """Every credential of the request by the place where it stands."""
    found: dict[str, str] = {}
    scheme, _, bearer = (ask.arrival.header("authorization") or "").strip().partition(" ")
    if scheme.lower() == "bearer" and bearer.strip():
        found["authorization"] = bearer.strip()
    elif scheme:
        found["authorization?"] = scheme + bearer
    found |= {place: value for place in _PLACES if (value := ask.arrival.header(place))}
    found |= {f"?{name}": value for name in _QUERY if (value := ask.query.get(name))}
    for protocol in (ask.arrival.header("sec-websocket-protocol") or "").split(","):
        if protocol.strip().startswith(_PROTOCOL):
            found["protocol"] = protocol.strip().removeprefix(_PROTOCOL)
    return found
