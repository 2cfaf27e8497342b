"""What keeping the answers of teachers takes on the disk, and how much of it is there. Imports no torch."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.data.views import training_images, uncountable, views_of, worth_keeping
from kdbench.files import read_json
from kdbench.records.answer_file import AnswerFile
from kdbench.records.identity import needs_teacher
from kdbench.specs.spec import RunSpec
from kdbench.sweeps.estimates import epochs_of
from kdbench.training.answer_keys import key_of, teacher_id


class Logits(NamedTuple):
    """A teacher's logits for all views of the training images.

    Attributes:
        key: equal for runs that share them.
        folder: in which the folders of all answers are.
        size: bytes when all are there.
        there: fraction that is.
    """

    key: str
    folder: str
    size: int
    there: float


class KeptAnswers:
    """The logits of teachers that runs keep. Whether a method reads these or embeddings, only torch can tell."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int | None, float]] = {}

    def of(self, spec: RunSpec) -> Logits | None:
        """Those of a run's teacher; None if none are kept, or if nothing says how many images there are."""
        config = spec.config
        dataset, recipe, teacher = config["dataset"], config["recipe"], config["teacher"]
        if not needs_teacher(config) or teacher["cache"] == "never" or uncountable(dataset, recipe):
            return None
        views = views_of(dataset["crop_padding"], dataset["flip"], recipe["augment"])
        assert views is not None
        wanted = json.loads(json.dumps({**key_of(spec), "views": views, "teacher_id": teacher_id(spec)}))
        folder, width, key = Path(config["outputs"]) / "answers", spec.sizes.num_classes, json.dumps(wanted)
        if key not in self._found:
            self._found[key] = _find(folder, wanted, width)
        rows, there = self._found[key]
        if rows is None:
            images = training_images(dataset)
            if images is None or (teacher["cache"] == "auto" and not worth_keeping(views, epochs_of(config))):
                return None
            rows = images * views
        size = AnswerFile.size_of(rows, width, wanted["dtype"])
        return Logits(key, str(folder), size, there) if size <= teacher["cache_gib"] * 2**30 else None


def _find(folder: Path, wanted: dict[str, Any], width: int) -> tuple[int | None, float]:
    """The rows of the answers with this key, and the fraction of logits that is there; None and 0 if there are none."""
    name = "logits.f16" if wanted["dtype"] == "float16" else "logits.f32"
    rows, there = None, 0.0
    for file in folder.glob("*/key.json"):
        kept = read_json(file) or {}
        if all(kept.get(key) == value for key, value in wanted.items()):
            rows = kept["rows"]
            if (path := file.with_name(name)).exists():  # of several machines, the one with the most
                answers = AnswerFile(path, rows, width, wanted["dtype"])
                there = max(there, answers.filled())
                answers.close()
    return rows, there
