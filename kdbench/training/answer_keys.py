"""What a teacher's kept answers depend on, as far as a configuration says it. Imports no torch."""

from typing import Any

from kdbench.specs.spec import RunSpec

_NOT_IMAGES = ("val_fraction", "split_seed", "loader")  # facts of a data set on which no image depends


def key_of(spec: RunSpec) -> dict[str, Any]:
    """The part of the key of a run's answers that follows from its configuration, of which the run need not exist."""
    facts, trainer = spec.identity.facts["dataset"], spec.config["trainer"]
    return {
        "images": {key: value for key, value in facts.items() if key not in _NOT_IMAGES},
        "dtype": "float16" if spec.config["teacher"]["cache_rounding"] == "float16" else "float32",
        "precision": trainer["precision"],
        "compile": trainer["compile"],
    }


def teacher_id(spec: RunSpec) -> str:
    """Identity of a run's teacher: of the run that trains it, or of its file."""
    identity: str = spec.identity.facts["dependencies"]["teacher"]
    return identity
