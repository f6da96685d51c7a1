"""The remote control of a demo: script faults, open gates and look at what arrived, over the stand-in's own port.

Keys are named whole when a fault is set (whoever runs a demo knows them) and never shown: answers have fingerprints.
"""

from __future__ import annotations

import orjson
from aiohttp import web

from balancer.model import fingerprint
from balancer.standin.answers import Json
from balancer.standin.faults import EVERY_KEY, Fault, Script
from balancer.standin.record import Arrival, Record

_SETTABLE: dict[str, type | tuple[type, ...]] = {
    "times": int,
    "model": str,
    "target": str,
    "method": str,
    "skip": int,
    "after": int,
    "interval": (int, float),
    "seconds": int,
    "size": int,
    "kind": str,
    "end": str,
    "read": bool,
}


async def handle(request: web.BaseRequest, script: Script, record: Record) -> web.StreamResponse:
    path = request.raw_path.partition("?")[0]
    match request.method, path:
        case "GET", "/_standin/faults":
            return _json(
                {"faults": [_fault(key, fault) for key, fault in script.listed()], "names": sorted(script.names)}
            )
        case "POST", "/_standin/faults":
            return _add(script, await request.read())
        case "DELETE", "/_standin/faults":
            script.clear(request.query.get("key"))
            return _json({})
        case "POST", "/_standin/gates":
            for _, fault in script.listed():
                fault.open()
            return _json({})
        case "GET", "/_standin/requests":
            return _json({"requests": [_arrival(arrival) for arrival in record.arrivals]})
        case _:
            return _json({"error": "no such control"}, 404)


def _add(script: Script, body: bytes) -> web.Response:
    try:
        wanted = orjson.loads(body)
        options = {name: wanted[name] for name in _SETTABLE if name in wanted}
        wrong = [name for name, value in options.items() if not isinstance(value, _SETTABLE[name])]
        if wrong:
            return _json({"error": f"wrong type: {', '.join(wrong)}"}, 400)
        fault = script.add(wanted.get("key", EVERY_KEY), Fault(wanted["fault"], **options))
    except (ValueError, KeyError, TypeError, AttributeError) as refused:
        return _json({"error": f"not understood: {refused}"}, 400)
    return _json(_fault(wanted.get("key", EVERY_KEY), fault))


def _fault(key: str, fault: Fault) -> Json:
    shown = {name: getattr(fault, name) for name in ("name", "times", "model", "target", "method", "skip", "used")}
    return {"key": key if key == EVERY_KEY else fingerprint(key)} | shown


def _arrival(arrival: Arrival) -> Json:
    shown = (
        "number",
        "method",
        "path",
        "fingerprint",
        "project",
        "connection",
        "size",
        "sha256",
        "status",
        "fault",
        "sent",
    )
    times = ("arrived", "cancelled", "finished")
    return {name: getattr(arrival, name) for name in (*shown, *times)}


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
