"""A short training on CIFAR-100."""

import subprocess
import sys
import time
from functools import partial
from typing import Any

from gpu_parts.parts import ROOT, SETTINGS, Outcome, Plan, Task, Time
from kdbench.records.record import Record
from kdbench.specs.resolve import spec_of
from kdbench.speed.epochs import seconds_per_epoch

# Of resnet32x4 -> resnet8x4 after 240 epochs, in %: the teacher of RepDistiller, then what reruns of several projects
# have given for the student.
PUBLISHED = {"teacher": "79.42", "ce": "72.1 to 72.9", "kd": "73.3 to 74.4"}


class Training:
    """Teacher, student alone and student with KD, with a schedule that is as long as the time allows."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epochs = 0

    def words(self, method: str) -> list[str]:
        """The overrides of a run with the schedule."""
        *_, pair = self.plan.pairs.values()
        few = ["trainer.max_batches=2"] if self.plan.smoke else []
        own = [f"recipe.epochs={self.epochs or 240}", f"outputs={self.plan.out / 'outputs'}", "trainer.progress=lines"]
        return self.plan.run(f"method={method}", *pair, "recipe=crd240", *SETTINGS["bf16"], *own, *few)

    def tasks(self) -> list[Task]:
        """The schedule, then the runs."""
        return [
            Task("schedule", self.schedule),
            Task("student alone", partial(self.train, "ce")),
            Task("teacher and student with KD", partial(self.train, "kd")),
        ]

    def schedule(self, available: Time) -> Outcome:
        """Choose the number of epochs from the time that an epoch of each of the three runs takes."""
        start = time.perf_counter()
        ce, kd = (spec_of(self.words(method)) for method in ("ce", "kd"))
        specs = {"teacher": kd.dependencies["teacher"], "ce": ce, "kd": kd}
        rounds, steps = (1, 2) if self.plan.smoke else (2, 60)
        seconds = {name: seconds_per_epoch(spec, rounds, steps) for name, spec in specs.items()}
        left = available.left - (time.perf_counter() - start)
        starts = 25.0 * len(specs)  # starts of processes, scores of the test set
        possible = int(0.8 * (left - starts) / sum(seconds.values()))
        each = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        if possible < 1:
            return Outcome(f"no epoch of all three fits into {left:.0f} s: {each} s an epoch", seconds, good=False)
        self.epochs = min(possible, 1 if self.plan.smoke else 240)
        note = "" if self.epochs == 240 else "; a shortened schedule is not comparable with the published figures"
        return Outcome(f"recipe.epochs={self.epochs} of crd240's 240 ({each} s an epoch){note}", seconds)

    def train(self, method: str, available: Time) -> Outcome:
        """A run, after its teacher's, in a process that is stopped in time; what their records say."""
        if not self.epochs:
            return Outcome("not begun: there is no schedule", good=False)
        words = self.words(method)
        process = subprocess.Popen([sys.executable, "-m", "kdbench.train", *words], cwd=ROOT)
        try:
            process.wait(max(available.left - 10, 1))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(8)
        spec = spec_of(words)
        runs = {**{name: needed.record for name, needed in spec.dependencies.items()}, method: spec.record}
        reports = {name: self.report(name, record) for name, record in runs.items()}
        text = "; ".join(f"{name} {report['text']}" for name, report in reports.items())
        return Outcome(text, reports, all(record.result for record in runs.values()))

    def report(self, name: str, record: Record) -> dict[str, Any]:
        """What a record says."""
        result, reached = record.result, len(record.epochs)
        text = f"{record.state}, {reached} of {self.epochs} epochs"
        if result:
            text += f", test accuracy {100 * result['test']['accuracy']:.2f} %"
        return {
            "text": f"{text} (published for 240 epochs: {PUBLISHED[name]} %)",
            "state": record.state,
            "epochs": reached,
            "directory": str(record.directory),
            "result": result and {key: result[key] for key in ("test", "cost")},
        }
