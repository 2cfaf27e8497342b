"""A run: its identity, its directory, its lock and its status. Knows nothing of distillation or of torch."""

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from kdbench.errors import UserError
from kdbench.files import digest, read_json, write_json, write_text

log = logging.getLogger("kdbench")

# raised whenever the same configuration would give another result than it did
SCHEMA = 1
# what says where things are or how to look at them, not what comes out
_NOT_IDENTITY = {
    "dataset": {"root", "download", "tree", "workers"},
    "method": {"_target_", "needs"},
    "noise": {"path", "matrix"},
}


class Identity(NamedTuple):
    """What a run is: `id` (12 hex digits) of the `facts` that change its result, and a readable `name`.

    `setting` is the same for runs that differ in nothing but the seed: these, and no others, may be averaged.
    """

    id: str
    name: str
    facts: dict[str, Any]
    setting: str


def needs_teacher(cfg: dict[str, Any]) -> bool:
    """Whether the method, or a loss added to it, learns from a teacher."""
    return any("teacher" in part["needs"] for part in (cfg["method"], *cfg["plus"].values()))


def facts_of(
    cfg: dict[str, Any],
    *,
    fingerprint: str | None = None,
    teacher: str | None = None,
    lightweight: str | None = None,
    noise_file: str | None = None,
) -> dict[str, Any]:
    """What of a configuration changes the result, and nothing else; arguments as those of `identify`."""

    def part(group: str, node: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in node.items() if key not in _NOT_IDENTITY.get(group, ())}

    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "method": part("method", cfg["method"]),
        "plus": {name: part("method", node) for name, node in sorted(cfg["plus"].items())},
        "student": cfg["student"],
        "teacher": teacher,
        "dataset": {**part("dataset", cfg["dataset"]), "fingerprint": fingerprint},
        "noise": part("noise", cfg["noise"]),
        "imbalance": cfg["imbalance"],
        "recipe": cfg["recipe"],
        "precision": cfg["trainer"]["precision"],
        "max_batches": cfg["trainer"]["max_batches"],
        "seed": cfg["seed"],
    }
    if teacher and cfg["teacher"]["shuffle"] != "none":
        facts["shuffle"] = cfg["teacher"]["shuffle"]
    if lightweight:
        facts["lightweight"] = lightweight
    # false is what runs did before there was such a key, and without noise all validation is clean
    clean = facts["noise"].pop("clean_validation")
    if clean and cfg["noise"]["name"] != "none":
        facts["noise"]["clean_validation"] = True
    if noise_file:
        facts["noise"]["file"] = noise_file
    return facts


def identify(
    cfg: dict[str, Any],
    *,
    fingerprint: str | None,
    teacher: str | None,
    lightweight: str | None = None,
    noise_file: str | None = None,
) -> Identity:
    """Identity of a configuration.

    Args:
        cfg: the checked configuration.
        fingerprint: of an image tree, instead of its path.
        teacher: id of the teacher's own run, or hash of its checkpoint; None where no loss needs one.
        lightweight: id of the run of the network that answers for synthetic images; None where no loss needs one.
        noise_file: fingerprint of the file that the label noise is read from, instead of its path.
    """
    facts = facts_of(cfg, fingerprint=fingerprint, teacher=teacher, lightweight=lightweight, noise_file=noise_file)
    corrupted = _noise_words(cfg["noise"]) + _imbalance_words(cfg["imbalance"])
    clean = "_clean" if corrupted and cfg["teacher"]["condition"] == "clean" else ""
    words = [method_word(cfg)]
    words += [cfg["teacher"]["name"] + clean] if teacher else []
    words += [cfg["student"]["name"], cfg["dataset"]["name"], *corrupted]
    what = "-".join(words)
    # the words do not say everything: the temperature, for one
    setting = f"{what}-{_hash({key: value for key, value in facts.items() if key != 'seed'})[:8]}"
    return Identity(_hash(facts)[:12], f"{what}-s{cfg['seed']}", facts, setting)


def _hash(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def method_word(cfg: dict[str, Any]) -> str:
    """The method and the losses added to it: `at`, `at+kd`."""
    return "+".join([cfg["method"]["name"], *sorted(cfg["plus"])])


def noise_word(noise: dict[str, Any]) -> str:
    """Kind and rate of the label noise: `none`, `symmetric0.4`, `human_worst`."""
    return "".join(_noise_words(noise)) or "none"


def imbalance_word(imbalance: dict[str, Any]) -> str:
    """Kind and strength of the class imbalance: `none`, `longtail100`."""
    return "".join(_imbalance_words(imbalance)) or "none"


def _noise_words(noise: dict[str, Any]) -> list[str]:
    if noise["rate"] is None:  # the labels, or their chances, are given
        return ["_".join([noise["name"], *([noise["annotation"]] if "annotation" in noise else [])])]
    return [f"{noise['name']}{noise['rate']:g}"] if noise["rate"] else []


def _imbalance_words(imbalance: dict[str, Any]) -> list[str]:
    if imbalance["name"] == "none":
        return []
    strength = imbalance.get("factor", imbalance.get("gamma"))
    return [imbalance["name"] + ("" if strength is None else f"{strength:g}")]


def file_identity(path: Path, how: dict[str, Any]) -> str:
    """Identity of a teacher that is given as a file: its content, and how it is used.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        text = json.dumps([digest(path), how], sort_keys=True)
    except OSError as error:
        raise UserError(f"teacher.checkpoint={path} cannot be read: {error.strerror}") from error
    return f"file-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Run:
    """The directory of one run: `config.yaml status.json metrics.jsonl result.json student.safetensors ...`."""

    def __init__(self, identity: Identity, outputs: Path) -> None:
        self.identity = identity
        self.id, self.name = identity.id, identity.name
        self.directory = outputs / "runs" / f"{identity.name}-{identity.id}"
        self.checkpoints = self.directory / "checkpoints"
        self.weights = self.directory / "student.safetensors"
        self.metrics = self.directory / "metrics.jsonl"

    def result(self) -> dict[str, Any] | None:
        """The stored result of a finished run, or None. It is written last: if it is there, all is."""
        return read_json(self.directory / "result.json")

    def status(self, **news: Any) -> None:
        """Merge `news` into `status.json`."""
        path = self.directory / "status.json"
        write_json(path, {**(read_json(path) or {}), **news, "updated": _now()})

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run's lock. The kernel frees a dead owner's; a live owner is waited for, with one line.

        Raises:
            UserError: the directory cannot be made or written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.directory / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                owner = read_json(self.directory / "status.json") or {}
                log.info("waiting for %s, which process %s is running", self.name, owner.get("pid", "?"))
                lock.acquire()
        except OSError as error:
            raise UserError(f"outputs={self.directory} cannot be written: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    def set_aside(self) -> None:
        """Move the record of an earlier attempt into `previous/<time>/`: nothing is lost."""
        old = [item for item in self.directory.iterdir() if item.name not in ("previous", ".lock")]
        if any(item.name == "status.json" for item in old):
            previous = self.directory / "previous"
            count = len(list(previous.glob("*")))  # two within a second are told apart
            place = previous / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{count + 1}"
            place.mkdir(parents=True)
            for item in old:
                shutil.move(item, place / item.name)
            self.checkpoints.mkdir()

    @contextmanager
    def recorded(self, cfg: dict[str, Any]) -> Iterator[None]:
        """Keep configuration, environment, log and status while the run is under way, whatever ends it."""
        write_text(self.directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(cfg)))
        write_json(self.directory / "env.json", environment())
        self.status(state="running", reason=None, id=self.id, name=self.name, pid=os.getpid(),
                    host=platform.node(), started=_now())  # fmt: skip
        handler = logging.FileHandler(self.directory / "train.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            self._note_end("interrupted" if interrupted else "failed", reason(error))
            raise
        else:
            self.status(state="finished", reason=None)
        finally:
            log.removeHandler(handler)
            handler.close()

    def _note_end(self, state: str, why: str) -> None:
        try:
            with (self.directory / "train.log").open("a") as handle:
                traceback.print_exc(file=handle)
            self.status(state=state, reason=why)
        except OSError as error:
            # the original error matters more; it is raised on
            log.error("could not note in %s that the run %s: %s", self.directory, state, error)


def reason(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    from importlib.metadata import version

    names = "kdbench torch torchvision pytorch-lightning timm hydra-core omegaconf numpy".split()
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def environment() -> dict[str, Any]:
    """Machine, versions, command and code state, for `env.json`."""
    import subprocess

    import torch

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain") if shutil.which("git") else None
    return {
        "command": sys.argv,
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "git": git("rev-parse", "HEAD") if changes is not None else None,
        "git_changes": changes.splitlines() if changes else [],
    }
