"""Ctrl-C and SIGTERM: raised where they arrive, and again at the end of the epoch if the exception was lost.

Python raises a signal's exception between any two instructions, also within a callback of a C library or a finaliser,
where exceptions are dropped; a run that lost its signal in this way would go on for hours.
"""

import signal
import sys
import threading
from typing import Any

_arrived: list[int] = []


def listen() -> None:
    """Handle both signals from now on; to be called in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, arrive)


def arrive(number: int, _: Any) -> None:
    """Raise `KeyboardInterrupt` for SIGINT, `SystemExit` for SIGTERM."""
    _arrived.append(number)
    _raise(number)


def raise_lost() -> None:
    """Raise a signal again whose exception was dropped; do nothing otherwise, nor outside of the main thread."""
    if _arrived and threading.current_thread() is threading.main_thread():
        _raise(_arrived.pop())


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
