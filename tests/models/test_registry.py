import subprocess
import sys

from kdbench.config.networks import NETWORKS
from kdbench.models.registry import CONSTRUCTORS

NAMES = """
resnet8 resnet14 resnet20 resnet26 resnet32 resnet44 resnet56 resnet110 resnet8x4 resnet32x4
wrn_10_2 wrn_16_1 wrn_16_2 wrn_28_2 wrn_40_1 wrn_40_2 vgg8 vgg11 vgg13 vgg16 vgg19
mobilenetv2 shufflenetv1 shufflenetv2 resnet50 lenet5
""".split()


def test_names():
    assert list(NETWORKS) == NAMES
    assert list(CONSTRUCTORS) == NAMES


def test_every_network_names_its_origin():
    for entry in NETWORKS.values():
        assert " et al., " in entry.paper or " & " in entry.paper
        assert 1998 <= entry.year <= 2018
        assert entry.note


def test_importing_the_names_does_not_import_torch():
    code = "import sys, kdbench.config.networks; print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
