"""What counts as a change of source, and what does not; found without importing it."""

import sys

import pytest

from kdbench.errors import UserError
from kdbench.records.source import source_hash

SOURCE = '''"""A method."""
from kdbench.methods.method import Method
from mine.parts import helper

class Mine(Method):
    """Mine."""

    def losses(self, student, teacher, batch):
        # scaled
        return {"mine": helper(student) * 2.0}
'''
SAME = {
    "comment": SOURCE.replace("# scaled", "# something else"),
    "docstring": SOURCE.replace('"""Mine."""', '"""Another\n\n    text."""'),
    "no docstring": SOURCE.replace('    """Mine."""\n\n', ""),
    "formatting": SOURCE.replace(
        '{"mine": helper(student) * 2.0}', '{\n            "mine": (helper(student) * 2.0),\n        }'
    ),
}
OTHER = {
    "a number": SOURCE.replace("2.0", "0.0"),
    "a name": SOURCE.replace('"mine":', '"yours":'),
    "a base class": SOURCE.replace("Mine(Method)", "Mine(object)"),
    "an operator": SOURCE.replace("* 2.0", "+ 2.0"),
    "a string that is no docstring": SOURCE.replace("        # scaled\n", "        note = 'x'\n"),
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `mine`, outside of kdbench; `write(name, text)` changes a module."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text):
        (folder / f"{name}.py").write_text(text)

    write("__init__", "raise RuntimeError('imported')\n")
    write("method", SOURCE)
    write("parts", "def helper(x):\n    return deeper(x)\n\nfrom .deep import deeper\n")
    write("deep", "def deeper(x):\n    return x.logits.sum()\n")
    write("unused", "VALUE = 1\n")
    return write


def mine():
    return source_hash("mine.method.Mine")


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_change_the_code_does_not_change_the_hash(package, change):
    before = mine()
    package("method", SAME[change])
    assert mine() == before


@pytest.mark.parametrize("change", OTHER)
def test_what_changes_the_code_changes_the_hash(package, change):
    before = mine()
    package("method", OTHER[change])
    assert mine() != before


def test_modules_of_the_package_count_if_they_are_imported_however_indirectly(package):
    before = mine()
    package("unused", "VALUE = 2\n")
    assert mine() == before
    package("deep", "def deeper(x):\n    return 0 * x.logits.sum()\n")
    assert mine() != before


def test_nothing_is_imported(package):
    mine()  # its __init__ would raise
    assert "mine" not in sys.modules


def test_modules_in_one_folder_without_a_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "alone.py").write_text("import json\nimport beside_it\n\nclass Mine:\n    x = beside_it.X\n")
    (tmp_path / "beside_it.py").write_text("X = 1\n")
    before = source_hash("alone.Mine")
    (tmp_path / "beside_it.py").write_text("X = 2\n")
    assert source_hash("alone.Mine") != before


def test_what_all_methods_share_is_no_part_of_a_method():
    from kdbench.records.source import _collected

    assert set(_collected("kdbench.methods.skd")) == {"kdbench.methods.skd", "kdbench.methods.kd"}
    assert set(_collected("kdbench.methods.at")) == {"kdbench.methods.at", "kdbench.methods.feature_maps"}


@pytest.mark.parametrize(
    ("target", "text", "parts"),
    [
        ("nowhere.method.Mine", None, ["nowhere.method.Mine", "no module nowhere"]),
        ("mine.method.Mime", None, ["mine.method.Mime", "does not define Mime", "nearest: Mine"]),
        ("mine.method.Mine", "class Mine(:\n", ["method.py:1", "not valid Python"]),
    ],
)
def test_what_cannot_be_found_or_read_is_refused_in_a_line(package, target, text, parts):
    if text:
        package("method", text)
    with pytest.raises(UserError) as caught:
        source_hash(target)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_an_installed_package_may_make_modules_while_it_is_imported(package):
    package("method", "import six.moves.urllib\nfrom torch.nn import functional, anything\n" + SOURCE)
    assert mine()


def test_kdbench_itself_is_read_wherever_it_is_installed(package):
    package("method", SOURCE.replace("import Method", "import Methodd"))
    with pytest.raises(UserError, match=r"method\.py:2: there is no name Methodd in kdbench\.methods\.method"):
        mine()
