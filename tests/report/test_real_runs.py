"""The report over runs that were really trained: what only their records hold must not come between them."""

import pandas as pd

from kdbench.report.compare import Options, compare

OPTIONS = Options(
    filters=[], by=["method"], over=["seed"], metrics=["test/accuracy"], baseline="ce", interval="t", test="t",
    strict=True, html=None, csv=None, markdown=None, latex=None, plots=None,
)  # fmt: skip


def test_methods_with_and_without_a_teacher_are_compared(tiny, tmp_path):
    for seed in (0, 1):
        for method in ("ce", "kd", "tfkd_reg"):
            tiny(f"method={method}", f"seed={seed}", "recipe.epochs=1")
    (study,) = compare(OPTIONS, tmp_path / "outputs").studies
    summary = study.summary.set_index("method")
    assert study.plan.grouping.split == []
    assert summary["n"].to_dict() == {"ce": 2, "kd": 2, "tfkd_reg": 2}
    assert summary.loc[["kd", "tfkd_reg"], "pairs"].tolist() == [2, 2]


def test_runs_of_one_method_with_different_code_are_not_averaged(tiny, tmp_path, monkeypatch):
    tiny("method=ce", "seed=0", "recipe.epochs=1")
    monkeypatch.setattr("kdbench.specs.resolve.source_hash", lambda target: "0123456789abcdef")
    tiny("method=ce", "seed=1", "recipe.epochs=1")
    (study,) = compare(OPTIONS._replace(strict=False), tmp_path / "outputs").studies
    assert study.plan.grouping.split == ["code.method"]
    assert isinstance(study.summary, pd.DataFrame)
    assert study.summary["n"].tolist() == [1, 1]
