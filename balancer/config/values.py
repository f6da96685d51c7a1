"""What a setting may hold: durations, sizes, lists, addresses. Each type takes the text that was written.

Validators raise ValueError with the sentence to show. They repeat what was written only where it cannot be a secret.
"""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo

from balancer.config.problems import ConfigError
from balancer.config.tree import read_yaml

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("b", 1000), ("ib", 1024))
    for power, prefix in enumerate("kmgt", 1)
}
_OFF = ("off", "false", "null", "~", "none", "")
_ON = ("on", "true", "yes")


def is_off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str) and value.strip().lower() in _OFF)


def off_is_none(value: Any) -> Any:
    return None if is_off(value) else value


def duration(value: Any) -> float:
    """Seconds of `250ms`, `30s`, `1h30m`, `30`."""
    text = str(value).strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text)
    glued = re.sub(r"\s+", "", "".join(number + unit for number, unit in parts))
    known = parts and all(unit in _SECONDS and (unit or len(parts) == 1) for _, unit in parts)
    if not known or glued != re.sub(r"\s+", "", text):
        if is_off(value):
            raise ValueError('cannot be switched off: it must be a duration, for example "30s"')
        raise ValueError(f'must be a duration like 250ms, 30s, 5m, 1h or 30d, not "{value}"')
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not math.isfinite(seconds) or seconds > 100 * 366 * 86400:
        raise ValueError(f'is longer than any wait: "{value}"')
    return seconds


def size(value: Any) -> int:
    """Bytes of `20MiB`, `10MB`, `1.5GiB`, `4096`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
    if match is None or match[2] not in _BYTES:
        if is_off(value):
            raise ValueError('cannot be switched off: it must be a size, for example "20MiB"')
        raise ValueError(f'must be a size like 20MiB, 10MB, 1GiB or a number of bytes, not "{value}"')
    return int(float(match[1]) * _BYTES[match[2]]) if "." in match[1] else int(match[1]) * _BYTES[match[2]]


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be more than 0")
    return value


def _positive_or_off(value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise ValueError("must be more than 0; `off` switches it off")
    return value


def listed(value: Any) -> Any:
    """A list, or text that stands for one: a JSON list or values with commas between."""
    if value is None:
        return []
    if not isinstance(value, str):
        return value
    if value.strip().startswith("["):
        return flow(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def mapped(value: Any) -> Any:
    """A mapping, or text that stands for one: a JSON object or `name=value` with commas between."""
    if value is None:
        return {}
    if not isinstance(value, str):
        return value
    if value.strip().startswith("{"):
        return flow(value)
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError('must be a mapping, a JSON object or "name=value,name=value"')
    return {name.strip(): text.strip() for name, _, text in pairs}


def flow(text: str) -> Any:
    """JSON (or YAML's inline form) in one text, scalars as text."""
    try:
        return read_yaml(text)
    except ConfigError:
        raise ValueError("is not valid JSON") from None


def text_or_none(value: Any) -> Any:
    return None if value is None or (isinstance(value, str) and not value.strip()) else value


def beside_the_file(value: str | None, info: ValidationInfo) -> str | None:
    """A path as the program opens it: relative ones count from the folder of the configuration file."""
    folder = info.context["folder"] if info.context else Path()
    return None if value is None else str(folder / value)


def visible(value: str) -> str:
    """A credential as it can stand in a header field."""
    if not value:
        raise ValueError("is empty")
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError("holds a space, a control character or a letter outside ASCII; it could not be sent")
    return value


def _visible_secret(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        visible(value.get_secret_value())
    return value


def http_url(value: str) -> str:
    """An absolute http(s) address without credentials, query and fragment; the closing slash is cut."""
    try:
        parts = urlsplit(value.strip())
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        raise ValueError("is not a URL") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not port_ok
        or re.search(r"[\s\\]", value.strip())
    ):
        raise ValueError("must be an address like https://host or http://host:port/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold credentials; they belong into `keys`, where they are kept out of logs")
    if parts.query or parts.fragment or value.strip().endswith(("?", "#")):
        raise ValueError("must not hold a query or a fragment")
    return value.strip().rstrip("/")


def http_url_or_none(value: str | None) -> str | None:
    return None if value is None else http_url(value)


def proxy_url(value: str) -> str:
    """An HTTP proxy, credentials allowed. `proxy:3128` means http://proxy:3128."""
    text = value.strip() if "://" in value else f"http://{value.strip()}"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("is not the URL of a proxy") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("must be an http:// or https:// proxy (SOCKS is not spoken)")
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must be an address like http://host:3128")
    return text.rstrip("/")


def _network(value: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    text = str(value).strip()
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f'must be an address or a range like 10.0.0.0/8, not "{text}"') from None
    raise ValueError(f"{text} is an address inside a range; the range is written {meant}")


def _glob(value: str) -> str:
    if not value.strip() or re.search(r"\s", value.strip()):
        raise ValueError("must be the name of a model or a glob like gemini-*, without spaces")
    if re.search(r"\[[^\]]*$", value):
        raise ValueError("has a [ without ]")
    return value.strip()


def _globs_or_any(value: Any) -> Any:
    return listed(value) or None


def _raw_paths(value: Any) -> Any:
    """`true` opens every path, `false` none."""
    if is_off(value):
        return []
    return ["*"] if str(value).strip().lower() in _ON else listed(value)


def _raw_path(value: str) -> str:
    if not value.strip().startswith(("/", "*")) or re.search(r"[\s?#\\]|//|/\.\.?(?:/|$)", value.strip()):
        raise ValueError("must be true, false, or globs of paths that start with / and hold no query, like /models*")
    return value.strip()


def _open_path(value: str) -> str:
    text = value.strip()
    if not re.fullmatch(r"(?:/(?!\.\.?(?:/|$))[\w.~:@!$&'()+,;=-]+)+", text, re.ASCII):
        raise ValueError("must be a path like /messages: it starts with /, and has no *, no query and no closing /")
    if re.match(r"/v1(?:/|$)", text):
        raise ValueError("must be what stands behind /v1, like /messages")
    return text


def _origin(value: str) -> str:
    text = value.strip().rstrip("/")
    parts = urlsplit(text)
    bare = parts.scheme and parts.hostname and not (parts.path or parts.query or parts.fragment or parts.username)
    if text != "*" and not bare:
        raise ValueError('must be an origin like https://app.example.com, or "*"')
    return text.lower()


def _host(value: str) -> str:
    text = value.strip().removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not re.fullmatch(r"(?!-)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.?", text) or re.fullmatch(r"[\d.]+", text):
        raise ValueError(f'must be an address to listen on, like 127.0.0.1, ::1 or localhost, not "{value}"')
    return text


def is_loopback(host: str) -> bool:
    """Only this machine reaches it. A name other than localhost may mean anything, so it is not trusted."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped_address = getattr(address, "ipv4_mapped", None)
    return bool((mapped_address or address).is_loopback)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Duration = Annotated[float, BeforeValidator(duration)]
"""Seconds, 0 allowed."""
Lifetime = Annotated[float, BeforeValidator(duration), AfterValidator(_positive)]
"""Seconds, more than 0."""
DurationOrOff = Annotated[float | None, BeforeValidator(lambda v: None if is_off(v) else duration(v))]
"""Seconds, 0 allowed, or None: switched off."""
Timeout = Annotated[
    float | None, BeforeValidator(lambda v: None if is_off(v) else duration(v)), AfterValidator(_positive_or_off)
]
"""Seconds, or None: switched off."""
Size = Annotated[int, BeforeValidator(size)]
"""Bytes, 0 allowed."""
Limit = Annotated[int, BeforeValidator(size), Field(gt=0)]
"""Bytes, more than 0. There is no "no limit": a large one says the same and cannot be left on by mistake."""
Count = Annotated[int, Field(gt=0)]
CountOrOff = Annotated[int | None, Field(gt=0), BeforeValidator(off_is_none)]
Port = Annotated[int, Field(ge=0, le=65535)]
PortOrOff = Annotated[int | None, Field(ge=0, le=65535), BeforeValidator(off_is_none)]
Text = Annotated[str | None, BeforeValidator(text_or_none)]
File = Annotated[Text, AfterValidator(beside_the_file)]
Secret = Annotated[SecretStr | None, AfterValidator(_visible_secret), BeforeValidator(text_or_none)]
Url = Annotated[str | None, AfterValidator(http_url_or_none), BeforeValidator(text_or_none)]
Host = Annotated[str, AfterValidator(_host)]
Networks = Annotated[tuple[Annotated[Network, BeforeValidator(_network)], ...], BeforeValidator(listed)]
Globs = Annotated[tuple[Annotated[str, AfterValidator(_glob)], ...], BeforeValidator(listed)]
GlobsOrAny = Annotated[tuple[Annotated[str, AfterValidator(_glob)], ...] | None, BeforeValidator(_globs_or_any)]
"""Globs, or None where none are named."""
RawPaths = Annotated[tuple[Annotated[str, AfterValidator(_raw_path)], ...], BeforeValidator(_raw_paths)]
OpenPaths = Annotated[tuple[Annotated[str, AfterValidator(_open_path)], ...], BeforeValidator(listed)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(listed)]
