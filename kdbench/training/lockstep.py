"""Several trainings in one process that take turns, batch by batch, and share what they compute from the same batch.

Each training is a thread, and only one of them runs at a time: the one that is furthest behind. A training that has
been resumed at an earlier epoch therefore catches up first, and then all work on the same batch, one after another.
What is global in a process, the states of the random number generators, is exchanged with every turn, so that each
training computes what it would compute alone.
"""

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from kdbench.training import signals

T = TypeVar("T")
Position = tuple[int, int]  # epoch and batch of the epoch
_START: Position = (-1, 0)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK = 0.05  # seconds between two looks whether all trainings have ended
_PATIENCE = 5.0  # seconds to wait for trainings that do not begin, because another process holds their runs


class Stopped(BaseException):
    """The group has been asked to stop. Not `KeyboardInterrupt`, with which Lightning changes the signal handlers.

    Attributes:
        why: the exception that the calling thread has received, another one of the same kind for each training.
    """

    def __init__(self, why: BaseException) -> None:
        super().__init__(why)
        self.why = why


class Lockstep:
    """A group of trainings that take turns.

    Args:
        count: number of trainings.
        admit: called with a member that is about to begin, while the others wait; what it raises ends that member.

    Attributes:
        members: one for each training, which acts through it.
        shared: of the batch at hand, whatever members want to share; emptied by `Member.turn` for the next batch.
        common: whatever members want to share from beginning to end.
    """

    def __init__(self, count: int, admit: Callable[["Member"], None] | None = None) -> None:
        self.admit = admit
        self._changed = threading.Condition()
        self._turn: Member | None = None
        self._stop: BaseException | None = None
        self._missing = set(range(count))  # members that have neither begun nor ended
        self._deadline = time.monotonic() + _PATIENCE
        self._shared_at = _START
        self.shared: dict[Any, Any] = {}
        self.common: dict[Any, Any] = {}
        self.members = [Member(self, number) for number in range(count)]

    def run(self, trainings: Sequence[Callable[["Member"], T]]) -> list["Outcome[T]"]:
        """Run the trainings to their ends, each in a thread of its own.

        An exception ends the training that raised it, and no other. `KeyboardInterrupt` and `SystemExit` in the calling
        thread are raised in all of them at their next turn, and again here when all have ended.

        Args:
            trainings: functions of the member through which they act, as many as there are members.

        Returns:
            What each returned or raised.
        """
        outcomes = [Outcome[T]() for _ in trainings]

        def run(number: int) -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # for the processes that the training starts
            try:
                outcomes[number].value = trainings[number](self.members[number])
            except BaseException as error:  # handed to the caller
                outcomes[number].error = error
            finally:
                self._no_longer_missing(number)
                ended.add(number)

        ended: set[int] = set()
        threads = [
            threading.Thread(target=run, args=(number,), name=f"training {number}") for number in range(len(trainings))
        ]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # an interrupted start leaves a thread in limbo
        for thread in threads:
            thread.start()
        while len(ended) < len(threads):
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                while len(ended) < len(threads):
                    time.sleep(_LOOK)  # not join: interrupted, it takes a thread that is alive for ended (bpo-45274)
                    signals.raise_lost()
            except (KeyboardInterrupt, SystemExit) as stop:
                with self._changed:
                    self._stop = stop
                    self._changed.notify_all()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self._stop is not None:
            raise self._stop
        return outcomes

    def _no_longer_missing(self, number: int) -> None:
        with self._changed:
            self._missing.discard(number)
            self._changed.notify_all()

    def _begun(self) -> bool:
        return not self._missing or time.monotonic() > self._deadline

    def _next(self) -> "Member | None":
        """Of the members that take part, the one that is furthest behind."""
        taking_part = [member for member in self.members if member.position is not None]
        return min(taking_part, key=lambda member: (member.position, member.rank, member.number), default=None)


class Outcome(Generic[T]):
    """What became of a training.

    Attributes:
        value: what it returned.
        error: what it raised; None if it returned.
    """

    value: T
    error: BaseException | None = None


class Member:
    """One training's part in a group.

    Attributes:
        group: the group.
        number: of the training.
        rank: of trainings at the same batch, those with a lower rank come first.
        position: the batch it is at; None while it takes no part.
        waited: seconds that it has waited for its turns.
    """

    def __init__(self, group: Lockstep, number: int) -> None:
        self.group, self.number = group, number
        self.rank = 0
        self.position: Position | None = None
        self.waited = 0.0
        self._state: Any = None

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Take turns with the others: from here to the end, this thread runs only while it is this member's turn."""
        self.position = _START
        self.group._no_longer_missing(self.number)
        try:
            self._wait()
            if self.group._stop is not None:
                raise _another(self.group._stop)
            if self.group.admit:
                self.group.admit(self)
            yield
        finally:
            with self.group._changed:
                self.position = None
                self._pass_on()

    def turn(self, position: Position) -> None:
        """Let others go first who are further behind; afterwards `group.shared` belongs to this position.

        Args:
            position: epoch and batch that come next.

        Raises:
            Stopped: the group has been asked to stop.
        """
        self.position = position
        if self.group._next() is not self:
            self._state = _global_state()
            with self.group._changed:
                self._pass_on()
            self._wait()
            _set_global_state(self._state)
        if self.group._stop is not None:
            raise Stopped(_another(self.group._stop))
        if self.group._shared_at != position:
            self.group.shared.clear()
            self.group._shared_at = position

    def clock(self) -> float:
        """Seconds, of which those that this member has waited are not counted."""
        return time.perf_counter() - self.waited

    def _pass_on(self) -> None:
        self.group._turn = None
        self.group._changed.notify_all()

    def _wait(self) -> None:
        group, start = self.group, time.perf_counter()

        def is_mine() -> bool:
            return group._turn is None and group._begun() and (group._stop is not None or group._next() is self)

        with group._changed:
            while not group._changed.wait_for(is_mine, timeout=0.2):  # also looks at the clock, for those missing
                pass
            group._turn = self
        self.waited += time.perf_counter() - start


def _another(stop: BaseException) -> BaseException:
    """The same kind of exception, for another thread."""
    return type(stop)(*stop.args)


def _global_state() -> Any:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return torch.get_rng_state(), cuda, random.getstate(), np.random.get_state()


def _set_global_state(state: Any) -> None:
    cpu, cuda, python, numpy = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
    random.setstate(python)
    np.random.set_state(numpy)
