"""The Python API of kdbench, in four steps: train, look at the records, use the student, use a method in a loop.

    python examples/python_api.py [OUTPUTS]

It trains small networks on the data set `digits`, which needs no download, and takes less than a minute on a CPU.
"""

import sys
import tempfile

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import kdbench


def train(outputs: str) -> kdbench.Record:
    """A run: the words are those of `kdbench-train`. The teacher is trained first, and kept for later runs."""
    words = ["dataset=digits", "teacher=resnet14", "student=resnet8", "recipe=quick", "recipe.epochs=2"]
    words += ["trainer=cpu", "trainer.progress=none", "logger=none", f"outputs={outputs}"]
    spec = kdbench.make("method=kd", *words)
    print(f"about to train {spec.name}, and its teacher {spec.dependencies['teacher'].name}")
    record = kdbench.conduct(spec)  # kdbench.run(...) is make and conduct in one
    print(f"test accuracy of the student: {record.finished['test']['accuracy']:.3f}")

    # several runs; the one that is finished already is not repeated
    for each in kdbench.grid("method=ce,kd", *words):
        kdbench.conduct(each)
    return record


def look(outputs: str) -> None:
    """The records as a pandas frame, one row a run."""
    frame = kdbench.runs(outputs, config=True)
    columns = ["role", "method", "student", "seed", "epochs", "test_accuracy", "config.method.temperature"]
    print(frame[columns].to_string(index=False))


def predict(record: kdbench.Record) -> None:
    """The student, ready to use. It takes images in [0, 1], and normalises them itself."""
    student = kdbench.load_student(record)
    images, labels = digits()
    with torch.no_grad():
        answers = student(images[:8]).logits.argmax(1)
    print(f"the student reads {answers.tolist()}, the labels are {labels[:8].tolist()}")


class Small(nn.Module):
    """A network that knows nothing of kdbench."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 10)."""
        return self.fc(self.body(self.stem(images)).mean((2, 3)))


def distill() -> None:
    """A method, and a loss added to it, in a plain training loop with networks of one's own."""
    images, labels = digits()
    loader = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=64, shuffle=True)

    teacher = Small(32)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(8):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(teacher(x), y).backward()
            optimizer.step()

    # which modules give the feature maps, and which one the logits
    names = {"in_chans": 1, "image_size": 8, "stages": ["stem", "body"], "classifier": "fc"}
    student = kdbench.network(Small(16), **names)
    words = "method=kd", "plus=[at]", "plus.at.weight=10"
    method = kdbench.method(*words, student=student, teacher=kdbench.network(teacher, **names))
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    for epoch in range(8):
        for x, y in loader:
            losses = method.batch_losses(kdbench.batch(x, y))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: " + ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
    student.eval()
    with torch.no_grad():
        right = (student(images[1500:]).logits.argmax(1) == labels[1500:]).float().mean().item()
    print(f"test accuracy of the student of the loop: {right:.3f}")


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,) of scikit-learn."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def main(outputs: str) -> None:
    """All four steps."""
    torch.manual_seed(0)
    record = train(outputs)
    look(outputs)
    predict(record)
    distill()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(folder)
