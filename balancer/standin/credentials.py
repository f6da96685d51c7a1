"""Who calls: the key of a request, where Google looks for it, and what it says when there is none."""

from __future__ import annotations

from balancer.standin import answers
from balancer.standin.answers import Reply, error
from balancer.standin.ask import Ask


def admit(ask: Ask) -> Reply | None:
    """Note key and project on the arrival. A refusal, or None: come in.

    The chunks of an upload carry no key; their `upload_id` is the credential. A key that comes along must be of the same project.
    """
    world, arrival = ask.world, ask.arrival
    if not ask.name:
        return answers.no_such_page()
    named = arrival.header("x-goog-api-key") or ask.query.get("key")
    scheme, _, bearer = (arrival.header("authorization") or "").partition(" ")
    bearer = bearer.strip() if scheme.lower() == "bearer" else ""
    if ask.name.startswith("openai/"):
        if named and bearer:
            return error(400, "Multiple authentication credentials received. Please pass only one.")
        named = named or bearer
    upload = world.uploads.get(ask.query.get("upload_id", "")) if ask.area == "upload" else None
    if not named:
        if upload is not None:
            arrival.key, arrival.project = upload.key, upload.project
            return None
        if ask.area == "upload" and "upload_id" in ask.query:
            return None
        return answers.unauthenticated() if bearer else answers.unregistered()
    project = "plain" if world.open_to_all else world.keys.get(named)
    if project is None:
        arrival.key = named
        return answers.key_invalid()
    arrival.key, arrival.project = named, project
    if upload is not None and upload.project != project:
        return error(403, "The caller does not have permission", headers=[("X-Goog-Upload-Status", "active")])
    return None
