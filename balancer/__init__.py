"""balancer: a reverse proxy for LLM APIs that owns the API keys. Start reading at `balancer/relay/relay.py`."""

__version__ = "0.1.0"
