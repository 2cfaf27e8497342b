"""Computing a teacher's answers to all views of the training images, so that no run has to compute one of them again.

Importing this file imports no torch.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdbench.console import console, show_messages
from kdbench.data.views import uncountable
from kdbench.errors import RunFailed, UserError
from kdbench.records.answer_file import AnswerFile
from kdbench.records.identity import method_word, needs_teacher
from kdbench.specs.spec import FinishedRun, RunSpec
from kdbench.training.conduct import check_device, conduct

if TYPE_CHECKING:
    import torch

    from kdbench.data.module import DataModule
    from kdbench.data.resident import ResidentLoader
    from kdbench.methods.machinery.module import DistillationModule

log = logging.getLogger("kdbench")

_SAMPLE = 2  # training batches for which the answers are compared before any are kept
_BLOCK = 64  # batches between two looks at what other processes have computed meanwhile
_LINES = 10  # messages about the progress where there is no bar


def fill(spec: RunSpec) -> None:
    """Train the teacher of a run if it is missing, and compute its answers to all views of the run's training images.

    Only what the run reads is computed, and only what is not there yet. It can be interrupted at any time, and several
    processes can do it together.

    Raises:
        UserError: the run has no teacher, reads what is not kept, or its answers take too much space; or they cannot
            be read instead of computed on this machine.
        RunFailed: the teacher's training failed, or the disk is full.
    """
    show_messages()
    _refuse_without_torch(spec)
    check_device(spec.config["trainer"])
    from kdbench.training.assemble import assemble, data_of
    from kdbench.training.teachers import teacher_of
    from kdbench.training.trainer import make_trainer, unchanged_flags

    data = data_of(spec)
    _rehearse(spec, data)
    needed = {name: run for name, run in spec.dependencies.items() if name == "teacher"}
    finished = {name: FinishedRun(run, conduct(run)) for name, run in needed.items()}
    with unchanged_flags():
        trainer = make_trainer(spec.config["trainer"], 1, spec.directory, [])
        teacher = teacher_of(spec, finished, data)
        assert teacher is not None
        method = assemble(spec, teacher.network).to(trainer.strategy.root_device)
        data.trainer = trainer
        try:
            with trainer.precision_plugin.forward_context():
                _fill(spec, method, data, trainer.strategy.root_device)
        except OSError as error:
            raise RunFailed(f"the teacher's answers cannot be kept: {error}; those that are there stay") from error


def _refuse_without_torch(spec: RunSpec) -> None:
    config = spec.config
    if not needs_teacher(config):
        raise UserError(f"method={config['method']['name']} learns from no teacher, whose answers could be kept")
    if config["teacher"]["cache"] == "never":
        raise UserError("teacher.cache=never is not possible here: auto or always, so that runs read what is kept")
    if option := uncountable(config["dataset"], config["recipe"]):
        raise UserError(f"{option} is not possible: the views of an image cannot be counted, so no answers are kept")


def _rehearse(spec: RunSpec, data: "DataModule") -> None:
    """Refuse, before a teacher is trained, what is seen only with data and networks."""
    import torch

    from kdbench.training import answer_folder
    from kdbench.training.assemble import assemble, untrained_teacher

    if data.views is None:
        raise UserError("dataset.loader=auto is not possible: so many images are streamed, and their views not counted")
    method = assemble(spec, untrained_teacher(spec))
    place = answer_folder.place_of(spec, method, data, torch.device("cpu"))
    if place is None:
        parts = " and ".join(sorted(method.teacher_reads() - {"network"}))
        name = method_word(spec.config)
        raise UserError(f"method={name} reads {parts} of the teacher; only logits and embedding can be kept")
    if why := answer_folder.exceeded_limit(place, spec):
        raise UserError(f"{why} than the {answer_folder.volume(place.size)} that the answers to all views take")


def _fill(spec: RunSpec, method: "DistillationModule", data: "DataModule", device: "torch.device") -> None:
    import torch

    from kdbench.data.resident import ResidentLoader
    from kdbench.training import answer_folder

    place = answer_folder.place_of(spec, method, data, device)
    loader, views = data.train_dataloader(), data.views
    assert place is not None
    assert views is not None
    assert isinstance(loader, ResidentLoader)
    if why := answer_folder.lacking_space(place):
        raise UserError(f"the teacher's answers take {answer_folder.volume(place.size)}, but {why}")
    files = place.open()
    seconds = _compare(spec, method, loader, files)
    rows = (data.train_index[:, None] * views + np.arange(views)).reshape(-1)
    sample = rows[np.linspace(0, len(rows) - 1, 2000).astype(int)]
    share = _there(files, sample).mean()
    log.info(
        "answers of %s to %d images x %d views (%s): %s when full, %.0f %% are there, about %s on %s for the rest: %s",
        spec.config["teacher"]["name"], data.train_size, views, ", ".join(files), answer_folder.volume(place.size),
        100 * share, timedelta(seconds=round((1 - share) * len(rows) / data.batch_size * seconds)), device,
        place.folder,
    )  # fmt: skip
    assert method.teacher is not None
    with _progress(spec, place.folder.name, len(rows)) as advance:
        for block in _blocks(len(rows), _BLOCK * data.batch_size):
            missing = block[~_there(files, rows[block])]
            for start in range(0, len(missing), data.batch_size):
                chosen = missing[start : start + data.batch_size]
                full = np.resize(chosen, data.batch_size)  # of the size of training batches, so that rounding is theirs
                batch = loader.views(torch.from_numpy(full // views), torch.from_numpy(full % views))
                features = method.teacher.compute(batch)
                for name, file in files.items():
                    values = getattr(features, name)[: len(chosen)].float().cpu().numpy()
                    file.write(rows[chosen], values.astype(file.dtype))
            advance(len(block))
    log.info("all answers are there: %s", place.folder)


def _compare(
    spec: RunSpec, method: "DistillationModule", loader: "ResidentLoader", files: Mapping[str, AnswerFile]
) -> float:
    """Refuse answers that depend on the other images of a batch, or differ from what is kept; seconds for a batch."""
    from kdbench.training.view_cache import AnswersInFiles

    assert method.teacher is not None
    exact = spec.config["teacher"]["cache_rounding"] == "exact"
    cache = AnswersInFiles(method.teacher, files, exact, None)
    for batch in islice(loader, _SAMPLE):
        start = time.perf_counter()
        difference = cache.compare(batch, method.teacher.compute(batch))
        seconds = (time.perf_counter() - start) / 2  # two forward passes
        if exact and difference:
            raise UserError(
                f"teacher.cache_rounding=exact is not possible: no answers would be read, on this machine {difference};"
                " float32 and float16 allow it, with teacher.cache=always"
            )
    return seconds


def _there(files: Mapping[str, AnswerFile], rows: np.ndarray) -> np.ndarray:
    """Which rows are there, in all files: (B,) bool."""
    return np.logical_and.reduce([file.read(rows)[1] for file in files.values()])


def _blocks(count: int, size: int) -> Iterator[np.ndarray]:
    """The numbers below `count` in blocks, whose order differs between processes that work at the same time."""
    starts = np.arange(0, count, size)
    for start in np.random.default_rng().permutation(starts):
        yield np.arange(start, min(start + size, count))


@contextmanager
def _progress(spec: RunSpec, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress as `trainer.progress` says; yields what adds to the number of answers that are there."""
    mode = spec.config["trainer"]["progress"]
    if mode == "bar" or (mode == "auto" and console.is_terminal):
        columns = (
            TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=True, refresh_per_second=4, expand=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if mode != "none" and before * _LINES // total < done * _LINES // total:
            log.info("%s  %.0f %%", title, 100 * done / total)

    yield advance
