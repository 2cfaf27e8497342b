"""What is known of a metric: its unit, and which way is better."""

from typing import NamedTuple

_PERCENT = "top5 many medium few agreement wrong true teacher ece10 ece15 adaptive_ece scaled_ece15".split()
_LOWER = "nll brier ece10 ece15 adaptive_ece scaled_ece15 kl seconds bytes parameters flops wrong".split()

_COUNTS = ("parameters", "bytes", "flops")


class Metric(NamedTuple):
    """A column of the records.

    Attributes:
        name: as in the records, `test/accuracy`.
        scale: factor from the record to what is shown.
        unit: of what is shown; empty for plain numbers.
        higher: whether more is better.
    """

    name: str
    scale: float
    unit: str
    higher: bool

    @property
    def label(self) -> str:
        """Name and unit, for a heading or an axis."""
        return self.name + (f" [{self.unit}]" if self.unit else "")

    @property
    def difference_unit(self) -> str:
        """Of a difference between two values: that of two percentages is in points."""
        return "points" if self.unit == "%" else self.unit

    @property
    def digits(self) -> int:
        """Decimals that are shown."""
        return 0 if self.name.endswith(_COUNTS) else {"%": 2, "s": 1, "": 3}[self.unit]


def metric(name: str) -> Metric:
    """A metric by its name; what its last word says decides unit and direction."""
    last = name.rpartition("/")[2]
    percent = "accuracy" in last or last in _PERCENT
    unit = "%" if percent else "s" if last.endswith("seconds") else ""
    higher = not any(last == word or last.endswith(f"_{word}") for word in _LOWER)
    return Metric(name, 100.0 if percent else 1.0, unit, higher)
