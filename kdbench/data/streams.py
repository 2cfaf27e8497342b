"""Separate, stateless random streams: a seed and a name determine a number, whatever was drawn before."""

import hashlib
import json


def derive(seed: int, *names: str | int) -> int:
    """Seed of the stream with this name, derived from `seed`.

    What is drawn for epoch 7 comes from `derive(seed, "order", 7)` and depends on nothing else, so a resumed run draws
    what the uninterrupted run would have drawn.

    Args:
        seed: any integer.
        names: strings and numbers that together name the stream; their order matters.

    Returns:
        An integer in [0, 2**63), the same on every machine and Python version.
    """
    digest = hashlib.sha256(json.dumps([int(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
