"""The keys of one upstream: which is lent next, and what its answers did to it. Pure: no network, no tasks, time given in."""
