"""Which jobs of a sweep can be trained together: those that see the same batches of the same teacher."""

import itertools
import json
from collections.abc import Iterable, Sequence

from kdbench.specs.spec import RunSpec
from kdbench.sweeps.grid import Task

# What of a recipe decides how the images of a batch look.
_BATCHES = ("batch_size", "augment", "erasing", "cutout", "mixup", "cutmix")
MOST = 8  # jobs at once with trainer.together=null


def group_of(spec: RunSpec) -> str | None:
    """The same for runs that can be trained together; None for a run that shares nothing.

    Flags of torch are of the whole process, so `trainer.deterministic` is left out. So is a profiler, which would see
    other runs, too.
    """
    cfg, facts = spec.config, spec.identity.facts
    teacher, trainer = facts["dependencies"].get("teacher"), cfg["trainer"]
    if teacher is None or cfg["stage"] != "student" or trainer["deterministic"] or trainer["profiler"]:
        return None
    own = ("callbacks", "together")
    images = cfg["dataset"]["root"], cfg["dataset"]["workers"]
    parts = {
        "outputs": cfg["outputs"],
        "teacher": [teacher, *(cfg["teacher"][key] for key in ("cache", "cache_gib", "cache_rounding"))],
        "data": [facts["dataset"], facts["noise"], facts["imbalance"], *images],
        "batches": [cfg["recipe"][key] for key in _BATCHES],
        "trainer": {key: value for key, value in trainer.items() if key not in own},
        "seed": cfg["seed"],
    }
    return json.dumps(parts, sort_keys=True)


def limit_of(spec: RunSpec) -> int:
    """How many runs at most are trained together with a run, itself included."""
    together: int | None = spec.config["trainer"]["together"]
    return MOST if together is None else together


def all_groups(tasks: Sequence[Task]) -> list[list[Task]]:
    """The jobs in the groups in which they will be trained, if all of them are free and have room in the memory."""
    left, groups = list(tasks), []
    while left:
        group = companions(left[0], left[1:])
        for task in group:
            left.remove(task)
        groups.append(group)
    return groups


def companions(task: Task, others: Iterable[Task]) -> list[Task]:
    """The jobs that are trained together with a job: itself and the first that can be.

    Args:
        task: the job.
        others: jobs that are still to be done.
    """
    limit = limit_of(task.spec)
    group = group_of(task.spec) if limit > 1 else None
    if group is None:
        return [task]
    fitting = (other for other in others if limit_of(other.spec) == limit and group_of(other.spec) == group)
    return [task, *itertools.islice(fitting, limit - 1)]
