"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
from blockbuster import BlockBuster

# The suite tries the same examples each time, so that a red run is the change's doing. Long hunts are random:
# HYPOTHESIS_PROFILE=default, and POOL_EXAMPLES or BALANCER_STEPS for their length.
hypothesis.settings.register_profile("suite", derandomize=True, database=None)
if not {"HYPOTHESIS_PROFILE", "POOL_EXAMPLES", "BALANCER_STEPS"} & set(os.environ):
    hypothesis.settings.load_profile("suite")

MAY_BLOCK = (
    (
        "balancer/server.py",
        {"running", "reload", "_tls"},
    ),  # the configuration and what it names: at start, and when it changes
    ("balancer/config/loading.py", {"parse"}),
    ("balancer/archiving.py", {"export", "_write"}),  # a command's own loop, that serves nobody
    ("balancer/observe/metrics.py", {"exposition"}),  # a scrape reads /proc
    ("balancer/observe/logs.py", {"_exception"}),  # a traceback looks at the sources
)


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    """A call of the program that blocks the event loop fails the test that makes it."""
    watch = BlockBuster("balancer")
    for function in watch.functions.values():
        for file, names in MAY_BLOCK:
            function.can_block_in(file, names)
    watch.activate()
    try:
        yield
    finally:
        watch.deactivate()
