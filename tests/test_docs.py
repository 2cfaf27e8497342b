"""The documentation names every method, with the paper and the year that its YAML header gives."""

import re
from pathlib import Path

import pytest

from kdbench.config.groups import content, header, options

ROOT = Path(__file__).parents[1]
METHODS = options("method")


def table_of_methods():
    """Name of a method -> the cells behind it in the table of `docs/methods.md`."""
    cells = {}
    for line in (ROOT / "docs" / "methods.md").read_text().splitlines():
        if line.startswith("| `"):
            names, *rest = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            cells |= dict.fromkeys(re.findall(r"`(\w+)`", names), rest)
    return cells


def help_on_methods():
    """What `kdbench-train --help` says about the group `method`."""
    template = content("train")["hydra"]["help"]["template"]
    return re.search(r"^ +method +(.*?)^ +plus ", template, re.DOTALL | re.MULTILINE)[1]


def test_the_table_lists_the_methods_and_nothing_else():
    assert sorted(table_of_methods()) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_the_table_gives_paper_and_year_of_the_header(method):
    head = header(f"method/{method}")
    paper, year, kind, modules, departures = table_of_methods()[method]
    assert (paper, year) == (head["paper"] or "none", head["year"])
    assert "" not in (kind, modules, departures)


def test_the_readme_names_every_method_as_code():
    prose = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    code = re.findall(r"`([^`]+)`", prose)
    assert [method for method in METHODS if method not in code] == []


def test_the_help_text_names_every_method():
    names = re.findall(r"\w+", help_on_methods())
    assert [method for method in METHODS if method not in names] == []
