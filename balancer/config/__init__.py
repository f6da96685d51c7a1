"""The configuration: `load()` reads `config.yaml`, `.env` and the environment into frozen, typed `Settings`.

`models` and `upstream` are the settings with their defaults, `values` the types they are written in, `tree`, `interpolation`
and `overlay` the sources, `loading` the way from those to these, `checks` and `problems` what can be wrong.
"""

from balancer.config.loading import find_config, load, parse
from balancer.config.models import (
    Admin,
    Affinity,
    Auth,
    Logging,
    Relay,
    RelayTimeouts,
    Server,
    Settings,
    Token,
)
from balancer.config.problems import ConfigError
from balancer.config.upstream import KeyEntry, Upstream

__all__ = [
    "Admin",
    "Affinity",
    "Auth",
    "ConfigError",
    "KeyEntry",
    "Logging",
    "Relay",
    "RelayTimeouts",
    "Server",
    "Settings",
    "Token",
    "Upstream",
    "find_config",
    "load",
    "parse",
]
