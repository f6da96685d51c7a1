"""What the log says when a key or a whole upstream goes out of use, or comes back."""

from __future__ import annotations

from typing import Any

import structlog

from balancer.keypool.pool import Event
from balancer.keypool.reach import Turn

log = structlog.get_logger()


def log_key_event(upstream: str, event: Event) -> None:
    """What became of a key; where the event names none, of the upstream's whole pool."""
    fields: dict[str, Any] = {"upstream": upstream, "key": event.fingerprint, "reason": event.reason}
    if event.model is not None:
        fields["model"] = event.model
    if event.seconds is not None:
        fields["seconds"] = round(event.seconds, 1)
    if event.alert:
        log.critical("key leaked: revoke it and make a new one", **fields)
    elif event.kind in ("enabled", "backoff_over"):
        log.info(f"key {event.kind}" if event.kind == "enabled" else "upstream usable again", **fields)
    else:
        log.warning({"rest": "key rests", "disabled": "key disabled"}.get(event.kind, "upstream backs off"), **fields)


def log_turn(upstream: str, turn: Turn) -> None:
    """Whether the upstream can be reached."""
    match turn.kind:
        case "down":
            seconds = round(turn.seconds or 0.0, 1)
            log.warning(
                "upstream down: left out until a probe succeeds", upstream=upstream, reason=turn.reason, seconds=seconds
            )
        case "up":
            log.info("upstream up again", upstream=upstream, seconds=round(turn.seconds or 0.0, 1))
        case "doubted":
            log.debug("upstream gives no answers: probing it", upstream=upstream, reason=turn.reason)
