"""`make demo`: a teacher, the student alone and the student with KD on real digits, and what came of it."""

import os
import statistics
import time

# 8x8 images are too small to share between cores; and one thread does not wait for busy neighbours
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.table import Table

from kdbench.console import console
from kdbench.specs.resolve import spec_of
from kdbench.training.conduct import conduct

SEEDS = range(5)
start = time.perf_counter()
runs = {
    method: [conduct(spec_of([f"method={method}", f"seed={seed}", "experiment=demo"])) for seed in SEEDS]
    for method in ("ce", "kd")
}
results = {method: [run.finished for run in each] for method, each in runs.items()}
accuracy = {method: [result["test"]["accuracy"] for result in each] for method, each in results.items()}
seconds = {method: sum(result["cost"]["train_seconds"] for result in each) for method, each in results.items()}
gains = [100 * (kd - ce) for ce, kd in zip(accuracy["ce"], accuracy["kd"], strict=True)]
first = results["kd"][0]


def spread(values, form):
    """Mean and standard deviation."""
    return f"{form % statistics.mean(values)} ± {statistics.stdev(values):.2f}"


epochs = first["config"]["recipe"]["epochs"]
title = f"digits, 1,797 real 8x8 images; students trained for {epochs} epochs; test accuracy in %, mean ± std of "
table = Table(title=f"{title}{len(SEEDS)} seeds", title_justify="left")
for column in ("", "network", "accuracy", "gain", "seconds"):
    table.add_column(column, justify="left" if column in ("", "network") else "right")
teacher, student = first["teacher"], first["config"]["student"]["name"]
table.add_row(
    "teacher", teacher["name"], f"{100 * teacher['test_accuracy']:.2f}", "", f"{first['cost']['teacher_seconds']:.1f}"
)
for name, method in (("student alone", "ce"), ("student with KD", "kd")):
    percent = [100 * value for value in accuracy[method]]
    gain = spread(gains, "%+.2f") if method == "kd" else ""
    table.add_row(name, student, spread(percent, "%.2f"), gain, f"{seconds[method]:.1f}")
console.print(table)
for each in runs.values():
    for run in each:
        console.print(f"record: {run.directory}")
console.print(f"{time.perf_counter() - start:.0f} s in all")
