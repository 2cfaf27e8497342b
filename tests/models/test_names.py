"""Names of networks are checked without timm and torch."""

import subprocess
import sys

import pytest
import timm
from timm.models import _registry

from kdbench.config.networks import NETWORKS, unknown_name
from kdbench.config.timm_names import deprecated_names, timm_names
from tests.helpers.tiny import TINY


def run(code):
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return process.stdout.strip()


def test_the_names_are_those_of_timms_registry():
    ours = {f"cifar_{name}" for name in NETWORKS}
    assert timm_names() == set(timm.list_models()) - ours
    assert timm_names() | deprecated_names() == set(_registry._model_entrypoints) - ours


def test_an_unknown_name_is_refused_without_torch():
    code = f"""
import sys
from kdbench.errors import UserError
from kdbench.config.networks import unknown_name
from kdbench.specs.resolve import spec_of
for name in ("resnet18", "resnet18.a1_in1k", "tv_resnet34", "cifar_resnet8"):
    assert unknown_name(name, "timm") is None, name
for words in (["student=timm", "student.name=resnte18"], ["teacher.name=resnet18"]):
    try:
        spec_of([*{TINY}, *words])
    except UserError as error:
        print(error)
print([module for module in ("torch", "timm") if module in sys.modules])
"""
    assert run(code).splitlines() == [
        "student.name: unknown timm network resnte18; nearest: resnet18, resnet18d, skresnet18",
        "teacher.name: unknown cifar network resnet18; nearest: resnet8, resnet14, resnet8x4"
        "; timm has a network of this name (source=timm)",
        "[]",
    ]


def test_a_model_that_others_have_registered_with_timm_is_known():
    code = """
import timm
from kdbench.config.networks import unknown_name
assert unknown_name("mine_of_my_own", "timm")
def mine_of_my_own(**kwargs): ...
timm.models.register_model(mine_of_my_own)
print(unknown_name("mine_of_my_own", "timm"))
"""
    assert run(code) == "None"


@pytest.mark.parametrize("packages", ["timm, kdbench.models.with_timm", "kdbench.models.with_timm, timm"])
def test_the_models_are_registered_with_timm_by_an_import(packages):
    code = f"import {packages}; print(sum(p.numel() for p in timm.create_model('cifar_resnet8').parameters()))"
    assert int(run(code)) > 0
    assert run("import sys, kdbench.models.build; print('timm' in sys.modules)") == "False"


def test_kdbench_itself_imports_neither_torch_nor_timm():
    assert run("import sys, kdbench; print([m for m in ('torch', 'timm') if m in sys.modules])") == "[]"
    assert unknown_name("cifar_resnet8", "timm") is None
