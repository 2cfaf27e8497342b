"""What is not used is not imported: torch takes seconds, and so do timm, scipy and pandas."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch torchvision timm pytorch_lightning torchmetrics sklearn scipy matplotlib pandas wandb mlxtend tensorboard"
).split()
RUN = "method=kd teacher=resnet20 student=resnet8 dataset=digits debug=smoke logger=none trainer=cpu".split()


def imported(code, *words):
    """The heavy modules that a process has imported at its end, and what it wrote."""
    code = f"import sys, atexit\natexit.register(lambda: print('\\nimported', *sys.modules))\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    modules = done.stdout.splitlines()[-1].split()[1:]
    assert "kdbench" in modules
    return set(modules), done.stdout + done.stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def after_run(outputs):
    """Modules that a run has imported, beyond those that Lightning imports by itself."""
    code = "import pytorch_lightning\nown = set(sys.modules)\nfrom kdbench import train; train.main()\n"
    code += "for name in own: del sys.modules[name]"
    return imported(code, *RUN, f"outputs={outputs}")[0]


def test_a_run_imports_only_what_it_uses(after_run):
    assert "kdbench.training.fit" in after_run
    # torchmetrics imports scipy, and the temperature of a student is fitted with it
    assert after_run.intersection(set(HEAVY) - {"scipy"}) == set()
    assert "torchvision.transforms.v2" not in after_run


def test_a_finished_run_is_answered_without_them(after_run, outputs):
    modules, printed = imported("from kdbench import train; train.main()", *RUN, f"outputs={outputs}")
    assert "already done" in printed
    assert modules.intersection(HEAVY) == set()


@pytest.mark.parametrize("words", [["--help"], ["ls", "methods"], ["runs"], ["plan", *RUN, "seed=0,1"]], ids=" ".join)
def test_a_verb_that_computes_nothing_needs_none(words, tmp_path):
    words = [*words, "--outputs", str(tmp_path)] if words == ["runs"] else words
    modules, _ = imported("from kdbench import cli; sys.exit(cli.main(sys.argv[1:]))", *words)
    assert modules.intersection(HEAVY) == set()


def test_timm_is_imported_for_its_own_models_only():
    arguments = "num_classes=4, in_chans=1, image_size=32, mean=[0], std=[1]"
    code = f"from kdbench.models.build import build\nbuild('resnet8', {arguments})\nprint('timm' in sys.modules)"
    code += f"\nbuild('cifar_resnet8', source='timm', {arguments})\nprint('timm' in sys.modules)"
    assert imported(code)[1].split()[:2] == ["False", "True"]
