import subprocess
import sys

from kdbench.data.streams import derive


def test_streams_differ_by_seed_names_and_their_order():
    seeds = [derive(s, *n) for s in (0, 1) for n in (("a", "b"), ("b", "a"), ("a/b",), ("a", 1), ("a", "1"), ())]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_never_changes():
    assert derive(0, "order", 7) == 6827025170443815840


def test_data_can_be_checked_without_torch():
    code = (
        "import sys; from kdbench.data import sources, noise, imbalance, streams;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'sklearn', 'mlxtend', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
