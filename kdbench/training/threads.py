"""How many threads the operations of torch on the CPU use. Importing this file imports no torch.

Sums over a batch are rounded differently with another number of threads: weights of resnet8 and resnet20 differ after
four steps with one thread and with two. So the number depends on the command and the machine, on nothing that changes
between a run and its continuation, and is in the record (`threads` in `env.json`).
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from joblib import cpu_count, effective_n_jobs

VARIABLE = "OMP_NUM_THREADS"


def threads_of(trainer: Mapping[str, Any]) -> int:
    """`trainer.threads`, else the environment variable `OMP_NUM_THREADS`, else all cores this process may use.

    On two cores that nothing else used, a step of resnet20 with 64 images of 32x32 pixels took 104 ms with two threads
    and 189 ms with one; there is no case known where fewer threads than cores are faster for a run alone.

    Args:
        trainer: the `trainer` group; records of earlier versions lack the key.
    """
    # OpenMP allows a list, a number for each level of nested parallelism, and ignores what is no positive number
    given = re.match(r"\s*(\d+)\s*(,|$)", os.environ.get(VARIABLE, ""))
    number: int = trainer.get("threads") or (int(given[1]) if given else 0) or cpu_count()
    return number


def use_threads(trainer: Mapping[str, Any]) -> None:
    """Let torch use `threads_of(trainer)` threads from now on, in this process.

    Args:
        trainer: the `trainer` group.
    """
    import torch

    torch.set_num_threads(threads_of(trainer))


def share_of_job(launcher: Mapping[str, Any], jobs: int) -> int | None:
    """How many threads each job of a sweep gets if its launcher runs several of them at once.

    Args:
        launcher: Hydra's `hydra.launcher` group.
        jobs: of the sweep, finished or not.

    Returns:
        None where the job's own process knows best: Ray sets `OMP_NUM_THREADS` to the `num_cpus` of a job, and Slurm
        restricts a job to its cores.
    """
    kind = str(launcher["_target_"]).rpartition(".")[2]
    if kind == "JoblibLauncher":
        return max(1, cpu_count() // min(effective_n_jobs(launcher["n_jobs"]), jobs))
    if kind in ("LocalLauncher", "SlurmLauncher") and launcher["cpus_per_task"]:
        return int(launcher["cpus_per_task"])
    if kind == "LocalLauncher":  # it starts all jobs at once
        return max(1, cpu_count() // jobs)
    return None
