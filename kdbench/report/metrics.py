"""Unit, direction and display format of each metric, derived from its name."""

from typing import NamedTuple

# besides every name that contains `accuracy`
_PERCENT = "top5 many medium few agreement wrong true teacher ece10 ece15 adaptive_ece scaled_ece15".split()
_LOWER_IS_BETTER = "nll brier ece10 ece15 adaptive_ece scaled_ece15 kl seconds bytes parameters flops wrong".split()
_COUNTS = ("parameters", "bytes", "flops")


class Metric(NamedTuple):
    """A numeric column of the records.

    Attributes:
        name: as in the records, such as `test/accuracy`.
        scale: factor from the recorded to the displayed value.
        unit: of the displayed value; empty for plain numbers.
        higher: whether higher is better.
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
        """Unit of a difference between two values; differences of percentages are in (percentage) points."""
        return "points" if self.unit == "%" else self.unit

    @property
    def digits(self) -> int:
        """Number of decimals displayed."""
        return 0 if self.name.endswith(_COUNTS) else {"%": 2, "s": 1, "": 3}[self.unit]


def metric(name: str) -> Metric:
    """The metric of this name; the part after the last slash decides unit and direction."""
    last = name.rpartition("/")[2]
    percent = "accuracy" in last or last in _PERCENT
    unit = "%" if percent else "s" if last.endswith("seconds") else ""
    higher = not any(last == word or last.endswith(f"_{word}") for word in _LOWER_IS_BETTER)
    return Metric(name, 100.0 if percent else 1.0, unit, higher)
