"""A small, fast run: resnet14 teaches resnet8 on fake 8x8 images."""

import subprocess
import sys

TINY = [
    "dataset=fake", "dataset.num_train=80", "dataset.num_test=40", "dataset.num_classes=4", "dataset.channels=1",
    "dataset.image_size=8", "dataset.crop_padding=1", "teacher=resnet14", "student=resnet8", "recipe.epochs=3",
    "recipe.batch_size=16", "logger=none", "trainer=cpu", "trainer.checkpoint_seconds=0",
]  # fmt: skip
# A smaller lightweight teacher for method=lwkd.
LIGHT = ["method.synthetic.num_train=1000", "method.synthetic.num_test=100", "method.synthetic.epochs=2"]
# Parts of a result's cost that a repeated run does not repeat.
TIMES = {"train_seconds", "teacher_seconds", "images_per_second", "peak_memory_bytes",
         "teacher_answers_read", "trained_together"}  # fmt: skip


def same(result):
    """What a repeated or continued run must repeat bit for bit."""
    kept = {key: value for key, value in result.items() if key not in ("cost", "config")}
    kept["cost"] = {key: value for key, value in result["cost"].items() if key not in TIMES}
    return kept


def launch(words, **options):
    """`kdbench-train` with these words as a process."""
    command = [sys.executable, "-m", "kdbench.train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
