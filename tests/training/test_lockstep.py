import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from kdbench.training import lockstep
from kdbench.training.lockstep import Lockstep, Stopped


def run_together(*trainings):
    return Lockstep(len(trainings)).run(trainings)


def training(steps, seen, name, start=0, fails_at=None):
    """Draws random numbers at each step and notes the order of the steps."""

    def run(member):
        drawn = []
        with member.taking_part():
            torch.manual_seed(name)
            np.random.seed(name)
            for step in range(start, steps):
                member.turn((0, step))
                if step == fails_at:
                    raise ValueError(f"training {name}")
                seen.append((step, name))
                drawn.append((torch.rand(1).item(), np.random.rand()))
        return drawn

    return run


def test_trainings_take_turns_batch_by_batch():
    seen = []
    run_together(*(training(4, seen, name) for name in range(3)))
    assert seen == [(step, name) for step in range(4) for name in range(3)]


def test_random_numbers_are_those_of_a_training_alone():
    together = run_together(*(training(5, [], name) for name in range(3)))
    for name in range(3):
        alone = Lockstep(1).run([training(5, [], name)])
        assert together[name].value == alone[0].value


def test_one_that_is_behind_catches_up_first():
    seen = []
    run_together(training(4, seen, 0, start=2), training(4, seen, 1))
    assert [entry for entry in seen if entry[0] < 2] == [(0, 1), (1, 1)]
    both = [entry for entry in seen if entry[0] >= 2]
    assert sorted(both) == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert [step for step, _ in seen if step >= 2] == [2, 2, 3, 3]


def test_those_of_a_lower_rank_come_first():
    seen = []

    def last(member):
        member.rank = 1
        return training(3, seen, 0)(member)

    run_together(last, training(3, seen, 1))
    assert seen == [(step, name) for step in range(3) for name in (1, 0)]


def test_one_that_fails_leaves_the_others_as_they_were():
    outcomes = run_together(*(training(5, [], name, fails_at=2 if name == 1 else None) for name in range(3)))
    assert [str(outcome.error) for outcome in outcomes] == ["None", "training 1", "None"]
    assert outcomes[2].value == Lockstep(1).run([training(5, [], 2)])[0].value


def test_what_is_shared_is_shared_for_one_batch():
    computed = []

    def run(member):
        values = []
        with member.taking_part():
            for step in range(3):
                member.turn((0, step))
                if "answer" not in member.group.shared:
                    computed.append(step)
                    member.group.shared["answer"] = 10 * step
                values.append(member.group.shared["answer"])
        return values

    outcomes = run_together(*[run] * 4)
    assert [outcome.value for outcome in outcomes] == [[0, 10, 20]] * 4
    assert computed == [0, 1, 2]


def test_only_one_runs_at_a_time_and_waiting_is_counted_apart():
    running = []

    def run(member):
        with member.taking_part():
            for step in range(3):
                member.turn((0, step))
                running.append(1)
                assert len(running) == 1
                time.sleep(0.02)
                running.pop()
        return member.waited

    waited = [outcome.value for outcome in run_together(*[run] * 3)]
    assert all(seconds > 0.06 for seconds in waited)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interrupt_ends_all_at_their_next_turn(number, kind):
    ended, handler = [], signal.getsignal(number)

    def arrive(received, _):
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + received)

    def run(member):
        try:
            with member.taking_part():
                for step in range(10_000):
                    member.turn((0, step))
                    time.sleep(0.001)
        except BaseException as error:
            why = error.why if isinstance(error, Stopped) else error  # one that has not begun does not begin
            ended.append((type(why), why.args))
            raise why from None

    signal.signal(number, arrive)
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        with pytest.raises(kind):
            run_together(*[run] * 3)
    finally:
        signal.signal(number, handler)
    assert ended == [(kind, (143,) if kind is SystemExit else ())] * 3


def test_the_others_begin_without_one_that_is_held_up(monkeypatch):
    monkeypatch.setattr(lockstep, "_PATIENCE", 0.2)
    seen, done = [], threading.Event()

    def held_up(member):
        assert done.wait(10)
        return training(3, seen, 0)(member)

    def first(member):
        training(3, seen, 1)(member)
        done.set()

    run_together(held_up, first)
    assert seen == [(step, name) for name in (1, 0) for step in range(3)]
