"""What the commands say of themselves: what each does, examples, and exit codes, the way `--help` shows it."""

from __future__ import annotations

MAIN = """\
A reverse proxy for LLM APIs that owns the API keys: put its address where a provider's base URL would go.

first steps:
  balancer serve --stand-in             try it without a key: answers come from a built-in stand-in
  GEMINI_API_KEYS=k1,k2 balancer serve  serve the Gemini API on http://127.0.0.1:8000
  balancer keys                         what the keys of the running process are doing
"""
CONVERSATIONS = """\
Write stored chats out, or delete old ones. Works beside a running proxy, a batch at a time; progress goes to standard error.
An export that was broken off goes on where its file ends, a purge by being called again.

examples:
  balancer conversations export --to chats.jsonl
  balancer conversations export --client team-a --older-than 90d > old.jsonl
  balancer conversations purge --older-than 365d --dry-run

exit codes: 0 done, 1 the database or the file cannot be used, 2 mistake in the configuration or the command
"""
SERVE = """\
Serve until SIGTERM or Ctrl-C; what runs then may finish. SIGHUP, or a change of the file, reads the configuration again.

examples:
  GEMINI_API_KEYS=k1,k2 balancer serve
  balancer serve --config /etc/balancer/config.yaml
  balancer serve --stand-in

exit codes: 0 stopped, 1 cannot listen, 2 mistake in the configuration, 3 an upstream has no keys
"""
CHECK = """\
Check a configuration, every mistake at once, and show what it comes to. Nothing is started; no secret is shown.

examples:
  balancer check-config
  balancer check-config --config /etc/balancer/config.yaml --quiet

exit codes: 0 valid, 2 mistakes, 3 valid but an upstream has no keys
"""
KEYS = """\
Show the keys of the running process: which are ready, which rest and until when, which are disabled and why.
Asks its admin listener (http://127.0.0.1:8001 by default). Keys appear as fingerprints, never in clear.

examples:
  balancer keys
  balancer keys --json | jq '.upstreams[].keys[] | select(.state != "ready")'
  balancer keys --url http://10.0.0.5:8001

exit codes: 0 every upstream has a ready key, 1 one has none, 2 mistake in the configuration, 4 not reachable
"""
HEALTH = """\
Ask the running process whether it can serve (GET /readyz): for container health checks and scripts.

examples:
  balancer health
  balancer health --url http://127.0.0.1:9000

exit codes: 0 ready, 1 not ready, 2 mistake in the configuration, 4 not reachable
"""
CREATE_SESSION = """\
Make a session of an achuan backend with a client token of the running process, and print its number: for scripts.

examples:
  balancer create-session --model gpt-5.1-high
  BALANCER_TOKEN=secret balancer create-session --model achuan/gpt-5.1-high --url https://llm.example.com
  balancer create-session --model gpt-5.1-high --json | jq .data.id

exit codes: 0 made, 1 not made, 2 mistake in the configuration
"""
DEPLOY = """\
List the files that are shipped for those who install this, print one, or write it to a directory.

examples:
  balancer deploy
  balancer deploy create-session.sh
  balancer deploy create-session.sh --to /usr/local/bin

exit codes: 0 done, 1 cannot be written, 2 no such file
"""
STAND_IN = """\
Run a stand-in upstream alone: a small honest server for trials, that answers without a model.

examples:
  balancer stand-in
  balancer stand-in --port 9001 --keys key-a,key-b
  balancer stand-in --kind openai --port 9002
  BALANCER_UPSTREAMS__GEMINI__BASE_URL=http://127.0.0.1:8090 GEMINI_API_KEYS=k1,k2,k3 balancer serve

exit codes: 0 stopped, 1 cannot listen
"""
DOCS = """\
Print a guide, or list the guides.

examples:
  balancer docs
  balancer docs configuration

exit codes: 0 printed, 2 no such guide
"""
