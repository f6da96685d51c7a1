"""aider, non-interactive: a question about a file, and an edit of it.

The stand-in says what it was told, so the edit that aider is to make stands in the message that asks for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from telling import TOKEN, URL, call, equal, holds, line

BEFORE, AFTER = "def fly():\n    return 'low'\n", "def fly():\n    return 'high'\n"
EDIT = f"bird.py\n```python\n<<<<<<< SEARCH\n{BEFORE}=======\n{AFTER}>>>>>>> REPLACE\n```"
OPTIONS = (
    "--no-git", "--yes-always", "--no-check-update", "--no-analytics", "--no-show-model-warnings", "--no-show-release-notes",
    "--no-gitignore", "--no-detect-urls", "--no-pretty", "--no-auto-lint", "--map-tokens=0",
)  # fmt: skip


def aider(folder: Path, *arguments: str) -> str:
    """What the program prints."""
    environ = os.environ | {
        "OPENAI_API_BASE": f"{URL}/v1",
        "OPENAI_API_KEY": TOKEN,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    command = [sys.executable, "-m", "aider", "--model", "openai/oa/gpt-4o-mini", *OPTIONS, *arguments, "bird.py"]
    null = subprocess.DEVNULL
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, stdin=null, check=False)
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}")
    return done.stdout


def main() -> None:
    """One run for both: starting takes most of the time."""
    line(client="aider", version=version("aider-chat"), transport="httpx")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "commands").write_text("/ask how does it fly?\n")
        (folder / "bird.py").write_text(BEFORE)
        with call("--load /ask (a question)"):
            said = aider(folder, "--load", "commands", "--edit-format", "diff", "--message", EDIT)
            holds("You said: how does it fly?" in said, said[-1000:])
        with call("--message (an edit)"):
            equal((folder / "bird.py").read_text(), AFTER)


main()
