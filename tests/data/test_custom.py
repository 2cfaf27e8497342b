import itertools

import numpy as np
import pytest

from kdbench.data import sources
from kdbench.errors import UserError
from kdbench.specs.resolve import spec_of
from tests.helpers.data import data_module, group, load

NUMBERS = itertools.count()
READER = """
import numpy as np

CALLS = []

def read(root, shift=0, size=8):
    CALLS.append(root)
    labels = np.arange(20) % 2
    if root is not None:
        shift += int(root.read_text())
    images = np.arange(20 * size * size).reshape(20, size, size) + shift
    return (images % 256).astype(np.uint8), labels, np.zeros((4, size, size), np.uint8), labels[:4]
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(text)`: make a module that is on the path, and return its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text=READER):
        name = f"reader_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def config(reader, **changes):
    return group("dataset", "custom", reader=reader, **changes)


def refusal(reader, **changes):
    """The message, in one line, with which a check refuses a reader."""
    with pytest.raises(UserError) as error:
        sources.check(config(reader, **changes))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_reader_is_called_once_with_root_and_options(tmp_path, write):
    (tmp_path / "data").write_text("5")
    name = write()
    dataset = config(f"{name}.read", root=str(tmp_path / "data"), options={"shift": 2, "size": 6})
    sizes = sources.check(dataset)
    assert sizes[:3] == (2, 1, 6)
    sources.verify(dataset)
    train, test = load(dataset)
    assert train.images[..., 0].ravel()[:3].tolist() == [7, 8, 9]
    pixels = train.images / 255
    assert sizes.mean == (round(pixels.mean(), 4),)
    assert sizes.std == (round(pixels.std(), 4),)
    assert test.images.flags.writeable
    assert data_module(dataset, batch_size=4).prepare().train_size == 18
    module = __import__(name)
    assert list(module.CALLS) == [tmp_path / "data"]
    load(config(f"{name}.read"))
    assert module.CALLS[1:] == [None]


def test_the_identity_is_that_of_the_arrays(tmp_path, write):
    def spec(**changes):
        options = [f"dataset.{key}={value}" for key, value in changes.items()]
        return spec_of(["dataset=custom", "method=ce", "student=resnet8", *options])

    def fingerprint(**changes):
        return spec(**changes).identity.facts["dataset"]["fingerprint"]

    first = write()
    expected = fingerprint(reader=f"{first}.read")
    assert len(expected) == 16
    assert fingerprint(reader=f"{write()}.read") == expected  # another reader of the same arrays
    assert fingerprint(reader=f"{first}.read", options="{shift:1}") != expected
    assert fingerprint(reader=f"{write(READER.replace('% 256', '% 255'))}.read") != expected
    assert fingerprint(reader=f"{write(READER.replace('np.zeros', 'np.ones'))}.read") != expected
    for name, number in (("a", "5"), ("b", "6"), ("c", "5")):
        (tmp_path / name).write_text(number)
    a, b, c = (spec(reader=f"{first}.read", root=tmp_path / name).id for name in "abc")
    assert a == c != b


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (None, "dataset.reader=null: give the import path"),
        ("read", "dataset.reader=read: must be package.module.function"),
        ("a b.read", "dataset.reader=a b.read: must be package.module.function"),
        ("absent_module.read", "there is no module absent_module; put its folder on PYTHONPATH or install it"),
        ("{}.sub.read", "there is no module {}.sub"),
        ("{}.reed", "reed does not exist in {path}; nearest: read"),
        ("{}.CALLS", "CALLS is not a function in {path}"),
    ],
)
def test_a_function_that_is_missing_is_named(tmp_path, write, reader, message):
    name = write()
    path = str(tmp_path / f"{name}.py")
    given = reader and reader.replace("{}", name)
    assert message.replace("{}", name).replace("{path}", path) in refusal(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import absent_package\n",
            "cannot be imported: ModuleNotFoundError: No module named 'absent_package' ({path}:1)",
        ),
        ("\n1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero ({path}:2)"),
        ("def read(root:\n", "cannot be imported: SyntaxError: '(' was never closed ({path}:1)"),
        ("def read(root):\n    return {}['a']\n", "failed with KeyError: 'a' ({path}:2)"),
        ("import os\ndef read(root):\n\n    os.listdir('/absent')", "No such file or directory: '/absent' ({path}:4)"),
        ("import json\ndef read(root):\n    json.loads('{')\n", "({path}:3)"),  # not the line in the library
        ("def read(root):\n    raise ValueError('two\\nlines')\n", "failed with ValueError: two lines ({path}:2)"),
        ("def read(root):\n    pass\n", "returned a NoneType; must return (x_train, y_train, x_test, y_test)"),
        ("def read(root):\n    return 1, 2\n", "returned a tuple of 2; must return (x_train"),
        ("def read(root):\n    return [[0]] * 4\n", "returned a list as x_train; must be a NumPy array"),
        ("def read():\n    pass\n", "cannot be called with (root): too many positional arguments"),
        ("def read(root, size):\n    pass\n", "cannot be called with (root): missing a required argument: 'size'"),
    ],
)
def test_errors_of_a_reader_are_one_line_with_its_file_and_line(tmp_path, write, text, message):
    name = write(text)
    line = refusal(f"{name}.read")
    assert line.startswith(f"dataset.reader={name}.read: ")
    assert message.replace("{path}", str(tmp_path / f"{name}.py")) in line


def test_options_that_the_reader_does_not_take_are_refused(write):
    line = refusal(f"{write()}.read", options={"sice": 3})
    assert "cannot be called with (root, sice): got an unexpected keyword argument 'sice'" in line


def test_arrays_of_a_reader_must_be_as_those_of_a_file(write):
    name = write(READER.replace("np.uint8), labels,", "np.int16), labels,"))
    assert refusal(f"{name}.read") == f"dataset.reader={name}.read: x_train is int16; must be uint8, or float in [0, 1]"
    assert "dataset.image_size=9: custom has 8" in refusal(f"{write()}.read", image_size=9)
    other = write(READER.replace("astype(np.uint8)", "astype(float)"))
    assert "x_train is float64 in [0, 255]; must be in [0, 1]" in refusal(f"{other}.read")


def test_a_reader_may_return_rgb_floats_with_the_channels_first(write):
    text = """
import numpy as np
def read(root):
    images = np.linspace(0, 1, 8 * 3 * 4 * 4, dtype=np.float32).reshape(8, 3, 4, 4)
    return images, np.arange(8) % 2, images, np.arange(8) % 2
"""
    dataset = config(f"{write(text)}.read")
    train, _ = load(dataset)
    assert train.images.shape == (8, 4, 4, 3)
    expected = np.linspace(0, 255, 8 * 3 * 16).round().reshape(8, 3, 4, 4).transpose(0, 2, 3, 1)
    assert np.abs(train.images - expected).max() <= 1
