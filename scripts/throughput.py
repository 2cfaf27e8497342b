"""Jobs per hour of a sweep, over the number of jobs side by side and the threads of each; prints a table.

Each row is a fresh sweep of `kdbench-train -m` in a folder of its own: resnet8 alone on digits, with six seeds, unless
the options or further overrides say otherwise. Figures are worth quoting only from a machine that has nothing else to
do: `python scripts/throughput.py --rounds 3`.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time

from joblib import cpu_count
from rich.table import Table

from kdbench.console import show
from kdbench.errors import UserError
from kdbench.sweeps.grid import read

GRID = [
    "method=ce", "student=resnet8", "dataset=digits", "recipe=quick", "logger=none", "trainer=cpu",
    "trainer.progress=none",
]  # fmt: skip
AUTO = "auto"  # trainer.threads is left to kdbench


def seconds_of_sweep(side_by_side: int, threads: str, overrides: list[str], passive: bool) -> float:
    """Carry out the grid in an empty folder.

    Args:
        side_by_side: jobs at once; 1 is Hydra's basic launcher, one process for all jobs.
        threads: of each job: a number, or `auto`.
        overrides: of the grid.
        passive: whether threads that wait sleep instead of spinning.

    Returns:
        Wall-clock seconds, start-up included.

    Raises:
        SystemExit: the sweep failed; its output is the message.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    environment |= {"OMP_WAIT_POLICY": "passive"} if passive else {}
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={side_by_side}"] if side_by_side > 1 else []
    given = [] if threads == AUTO else [f"trainer.threads={threads}"]
    with tempfile.TemporaryDirectory() as outputs:
        words = [*overrides, f"outputs={outputs}", *launcher, *given]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "kdbench.train", "-m", *words],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stdout)
    return seconds


def main() -> None:
    """Measure every combination in turn, `--rounds` times, and print medians."""
    cores = cpu_count()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", help="further overrides of every job, e.g. student=resnet20")
    parser.add_argument("--jobs", type=int, default=6, help="jobs of the grid, which differ in their seeds (default 6)")
    parser.add_argument("--epochs", type=int, default=5, help="of each job (default 5)")
    parser.add_argument("--n-jobs", default=f"1,{cores}", help=f"jobs side by side (default 1,{cores})")
    parser.add_argument("--threads", default=f"auto,1,{cores}", help=f"of each job (default auto,1,{cores})")
    parser.add_argument("--rounds", type=int, default=1, help="sweeps of each kind, all kinds in turn (default 1)")
    parser.add_argument("--passive", action="store_true", help="also with OMP_WAIT_POLICY=passive")
    args = parser.parse_args()
    seeds = ",".join(map(str, range(args.jobs)))
    overrides = [*GRID, f"recipe.epochs={args.epochs}", *args.overrides, f"seed={seeds}"]
    jobs = len(read(overrides).tasks)  # further overrides may make the grid larger
    policies = [False, True] if args.passive else [False]
    kinds = list(itertools.product(map(int, args.n_jobs.split(",")), args.threads.split(","), policies))
    measured: dict[tuple[int, str, bool], list[float]] = {kind: [] for kind in kinds}
    for _, kind in itertools.product(range(args.rounds), kinds):
        side_by_side, threads, passive = kind
        measured[kind].append(seconds_of_sweep(side_by_side, threads, overrides, passive))
    table = Table(
        title=f"{jobs} jobs, {' '.join(overrides)}, {cores} cores: median of {args.rounds}", title_justify="left"
    )
    for column in ("jobs at once", "threads", "waiting", "seconds", "jobs per hour"):
        table.add_column(column, justify="left" if column == "waiting" else "right")
    for (side_by_side, threads, passive), each in measured.items():
        seconds = statistics.median(each)
        waiting = "passive" if passive else "as OpenMP does"
        table.add_row(str(side_by_side), threads, waiting, f"{seconds:.1f}", f"{3600 * jobs / seconds:.0f}")
    show(table)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
