"""gemini-cli, non-interactive: a prompt, a second turn of the same session, JSON and streamed JSON output."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from telling import MODEL, URL, call, equal, holds, line

NODE = os.environ["CLIENT_NODE"]
PACKAGE = Path(os.environ["CLIENT_HOME"]) / "node_modules" / "@google" / "gemini-cli"
SETTINGS = {
    "security": {"auth": {"selectedType": "gemini-api-key"}},
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
    "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False},
}


def run(home: str, *arguments: str) -> str:
    """What the program prints, in a home of its own."""
    environ = os.environ | {
        "HOME": home,
        "GEMINI_API_KEY": "any-text",
        "GOOGLE_GEMINI_BASE_URL": URL,
        "GEMINI_CLI_NO_RELAUNCH": "true",
    }
    command = [NODE, str(PACKAGE / "bundle" / "gemini.js"), "--skip-trust", "-m", MODEL, *arguments]
    null = subprocess.DEVNULL
    done = subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, stdin=null, check=False)
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr[-800:]}")
    return done.stdout


def main() -> None:
    version = json.loads((PACKAGE / "package.json").read_text())["version"]
    line(client="gemini-cli", version=version, transport="fetch")
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / ".gemini").mkdir()
        (Path(home) / ".gemini" / "settings.json").write_text(json.dumps(SETTINGS))
        with call("-p"):
            equal(run(home, "-p", "one").strip(), "You said: one")
        with call("--resume latest -p"):
            equal(json.loads(run(home, "--resume", "latest", "-o", "json", "-p", "two"))["response"], "You said: two")
        with call("-o stream-json -p"):
            events = [json.loads(each) for each in run(home, "-o", "stream-json", "-p", "three").splitlines() if each]
            said = [event["content"] for event in events if event.get("role") == "assistant"]
            equal("".join(said), "You said: three")
            holds(len(said) > 1, said)


main()
