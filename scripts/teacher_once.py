"""How much faster runs are that read the teacher's answers, or share them, than runs that compute them.

For each pair of networks, real epochs of a few steps on synthetic images, in one process and in turn: kd that computes
the teacher's answers, kd that reads them from full files, all methods one after another, all methods together. With a
single view of each image, files are full after one epoch. The teacher is not trained: its speed does not depend on its
weights. The medians of the rounds are printed.
"""

import argparse
import logging
import statistics
import sys
import tempfile
from pathlib import Path

from rich.table import Table

from kdbench.console import show
from kdbench.files import write_json
from kdbench.records.environment import environment
from kdbench.specs.resolve import spec_of
from kdbench.specs.spec import RunSpec
from kdbench.training.conduct import conduct
from kdbench.training.together import conduct_together

PAIRS = ("resnet56:resnet20", "resnet32x4:resnet8x4")
METHODS = ("kd", "skd", "fitnet", "fsp", "at", "sp", "rkd")
_WARM = 1  # epochs that are not counted


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="TEACHER:STUDENT")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--steps", type=int, default=6, help="steps in an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a run, of which the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    table = Table(title=f"images/s, batches of {args.batch_size}: medians of {args.rounds} rounds in turn")
    for column in ("pair", "", "images/s", "times as fast"):
        table.add_column(column, justify="right" if column in ("images/s", "times as fast") else "left")
    figures = {}
    for pair in args.pairs:
        figures[pair] = speeds = measured(*pair.split(":"), args)
        for name, base in (("kd computes", ""), ("kd reads", "kd computes"),
                           ("one after another", ""), ("together", "one after another")):  # fmt: skip
            ratio = f"{paired_ratio(speeds, name, base):.2f}" if base else ""
            table.add_row(pair.replace(":", " -> "), name, f"{statistics.median(speeds[name]):.1f}", ratio)
    show(table)
    if args.json:
        write_json(Path(args.json), {"images_per_second": figures, "environment": environment()})
    return 0


def measured(teacher: str, student: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of each way, a value for each round."""
    speeds: dict[str, list[float]] = {}

    def specs(folder: Path, cache: str, methods: list[str]) -> list[RunSpec]:
        words = [
            "dataset=fake", f"dataset.num_train={args.steps * args.batch_size}", "dataset.num_test=64",
            "dataset.num_classes=100", f"dataset.image_size={args.side}", "dataset.val_fraction=0",
            "dataset.crop_padding=0", "dataset.flip=false", f"teacher={teacher}", f"student={student}",
            "teacher.recipe.stop_after=0", f"teacher.cache={cache}", "logger=none", "trainer.progress=none",
            "recipe.lr=0.0001",
            f"recipe.epochs={args.epochs}", f"recipe.batch_size={args.batch_size}", f"outputs={folder}",
        ]  # fmt: skip
        return [spec_of([*words, f"method={method}"]) for method in methods]

    def note(name: str, done: list[RunSpec]) -> None:
        seconds = [sum(row["seconds"] for row in spec.record.epochs[_WARM:]) for spec in done]
        images = (args.epochs - _WARM) * args.steps * args.batch_size
        speeds.setdefault(name, []).append(len(done) * images / sum(seconds))

    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            alone = specs(folder / "alone", "never", args.methods)
            for spec in alone:
                conduct(spec)
            note("kd computes", alone[:1])
            note("one after another", alone)
            (kept,) = specs(folder / "kept", "always", ["kd"])
            conduct(kept)
            note("kd reads", [kept])
            together = specs(folder / "together", "never", args.methods)
            failures = [failure for failure in conduct_together(together) if failure]
            if failures:
                raise failures[0]
            note("together", together)
    return speeds


def paired_ratio(speeds: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of the ratio of two speeds of the same round."""
    return statistics.median(a / b for a, b in zip(speeds[name], speeds[base], strict=True))


if __name__ == "__main__":
    sys.exit(main())
