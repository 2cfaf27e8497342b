"""`kdbench report` from the command line to its files."""

import csv
import io
import re

import pytest

from kdbench import cli
from kdbench.report.plots import pareto

NOISY = ("noise=symmetric", "noise.rate=0.4")


@pytest.fixture
def report(tmp_path, capsys):
    """`report(*arguments)`: exit code, standard output, standard error."""

    def call(*arguments):
        code = cli.main(["report", *arguments, "--outputs", str(tmp_path)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def two_methods(record):
    for seed in range(3):
        record("method=ce", seed=seed, accuracy=0.90 + seed / 100, epochs=(0.5, 0.7))
        record("method=kd", seed=seed, accuracy=0.93 + seed / 50, epochs=(0.6, 0.8))


def test_the_terminal_shows_the_table_and_how_it_was_computed(two_methods, report):
    code, out, _ = report()
    assert code == 0
    kd = next(line for line in out.splitlines() if line.strip().startswith("kd "))
    # gains 3, 4, 5 points: t = 4 / (1 / sqrt 3) = 6.928, p = 0.0202 with 2 degrees of freedom
    for cell in ("same/clean", "3", "95.00 ± 2.00", "[90.03, 99.97]", "+4.00", "[+1.52, +6.48]", "0.020", "97.00"):
        assert cell in kd, kd
    for term in (
        "95 % confidence interval, Student's t",
        "two-sided paired t test",
        "Holm correction over 1 test,",
        "minimum detectable difference: ",
        "80 % power",
    ):
        assert term in out
    assert "selected on test" not in out
    assert "published" not in out


def test_csv_has_full_precision_and_the_units_of_the_records(two_methods, report):
    _, out, _ = report("--csv", "-")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["method"] for row in rows] == ["ce", "kd"]
    assert float(rows[1]["mean"]) == pytest.approx(0.95)
    assert float(rows[1]["gain_low"]) == pytest.approx(0.04 - 4.302653 * 0.01 / 3**0.5)
    assert rows[0]["gain"] == ""


def test_several_metrics_are_several_tables(two_methods, report):
    _, out, _ = report("--metric", "test/accuracy,test/nll,cost/train_seconds", "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["metric"] for row in rows[::2]] == ["test/accuracy", "test/nll", "cost/train_seconds"]


def test_all_rows_of_the_markdown_table_have_the_same_columns(two_methods, report):
    _, out, _ = report("--markdown", "-", "--interval", "bca", "--test", "wilcoxon")
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 4
    for heading in ("test/accuracy [%], mean ± std", "gain over ce [points]", "minimum detectable difference [points]"):
        assert f"| {heading} |" in table[0]
    assert "| kd | same/clean | 3 | 95.00 ± 2.00 |" in table[3]
    assert "BCa bootstrap" in out
    assert "Wilcoxon signed-rank test" in out


def test_latex_is_an_escaped_booktabs_table(two_methods, report):
    _, out, _ = report("--latex", "-")
    assert out.count(r"\toprule") == out.count(r"\bottomrule") == 1
    assert r"95.00 $\pm$ 2.00" in out
    assert not re.search(r"(?<!\\)%", out)
    widths = {line.count("&") for line in out.splitlines() if line.endswith(r"\\")}
    assert len(widths) == 1


def test_the_page_loads_nothing_and_contains_tables_plots_and_runs(tmp_path, record, two_methods, report):
    for seed in range(2):
        record("method=ce", *NOISY, seed=seed, accuracy=0.7, epochs=(0.2, 0.3))
        record("method=kd", *NOISY, seed=seed, accuracy=0.6, epochs=(0.2, 0.3))
    page = tmp_path / "report.html"
    code, out, _ = report("--html", str(page))
    assert code == 0
    assert f"written: {page}" in out
    text = page.read_text()
    assert not re.search(r'(?:src|href|url)\s*[=(]\s*["\']?(?!data:)[^\s"\'>]*(?://|\.(?:js|css|png))', text)
    assert not re.search(r"https?://", text)
    titles = re.findall(r"<figure><h3>(.*?)</h3>", text)
    assert titles == ["Noise curve", "Heat map of gains", "Accuracy against cost", "Learning curves"]
    assert text.count("data:image/svg+xml;base64,") == 4
    assert len(re.findall(r">[\w-]+-resnet8-digits-[\w.-]+</td>", text)) == 10  # each run once, by name
    assert re.search(r'<td class="number" data-value="0\.9[0-9]+">95\.00 ± 2\.00</td>', text)


def test_the_same_runs_give_the_same_page(tmp_path, two_methods, report):
    for name in ("a.html", "b.html"):
        report("--html", str(tmp_path / name), "--interval", "bca")
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()


def test_a_filter_on_the_method_still_compares_with_the_baseline(two_methods, report):
    _, out, _ = report("method=kd")
    assert "+4.00" in out
    assert not any(line.strip().startswith("ce ") for line in out.splitlines())


def test_unfinished_runs_are_counted_and_named(two_methods, record, report):
    record("method=at", state="failed")
    _, out, _ = report()
    assert re.search(r"left out: 1 run \(at-resnet20-resnet8-digits-s0-\w+\): failed", out)


def test_splitting_is_noted_and_strict_refuses_it(two_methods, record, report):
    record("method=ce", *NOISY, seed=0)
    _, out, _ = report()
    assert "rows are split by noise, in which the runs differ" in out
    code, _, err = report("--strict")
    assert code == 2
    assert err == "error: the runs differ in noise: name it in --by, or filter with noise=...\n"


def test_few_runs_are_noted(record, report):
    record("method=ce", accuracy=0.9)
    for seed in range(2):
        record("method=kd", seed=seed, accuracy=0.9 + seed / 10)
    _, out, _ = report()
    assert "n = 1 in 1 row: no standard deviation and no confidence interval" in out
    assert "n = 2 in 1 row: a confidence interval from two runs says little" in out
    assert "fewer pairs than runs in 1 row: runs without a ce run of the same seed are not paired" in out


@pytest.mark.parametrize("share", [0.8, 0.0, None], ids=["read", "none could be read", "computed"])
def test_costs_of_runs_that_read_the_teachers_answers_are_noted(record, report, share, tmp_path):
    record("method=ce")
    for seed in range(2):
        cost = {"train_seconds": 10.0, "teacher_seconds": 5.0, "images_per_second": 100.0}
        record("method=kd", seed=seed, cost={**cost, "teacher_answers_read": share if seed else None})
    note = "costs are not comparable: 1 of 3 runs read answers of the teacher that were kept"
    for name in ("cost/train_seconds", "cost/total_seconds"):
        assert (note in report("--metric", name)[1]) == bool(share)
    assert "costs are" not in report("--metric", "cost/teacher_seconds")[1]
    assert "costs are" not in report("--html", str(tmp_path / "page.html"))[1]
    assert (note in (tmp_path / "page.html").read_text()) == bool(share)  # below the plot of costs


def test_published_values_are_shown_with_their_source(record, report):
    pair = ("dataset=cifar100", "dataset.val_fraction=0", "teacher=resnet56", "student=resnet20", "recipe=crd240")
    record("method=kd", *pair, "dataset.download=true", accuracy=0.71)
    _, out, _ = report()
    assert "70.66" in out
    assert "published: RepDistiller README (Tian et al., ICLR 2020), last epoch, 5 runs" in out
    assert "no gains: no ce run has the same data, student, recipe and seed as any of these runs" in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--metric", "test/acuracy"], "--metric test/acuracy: no run has it; nearest: test/accuracy"),
    (["--baseline", "sp"], "--baseline sp: no run has this method; known: ce, kd"),
    (["--by", "metod"], "metod is not a key of these runs; nearest: method"),
    (["method=at"], "no finished run in"),
    (["--html", "nowhere/r.html"], "nowhere/r.html cannot be written: there is no folder nowhere"),
])  # fmt: skip
def test_an_impossible_option_is_a_one_line_error(arguments, message, two_methods, report):
    code, out, err = report(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {message}")


def test_no_runs_are_an_error(report):
    code, _, err = report()
    assert code == 2
    assert "no finished run in" in err


def test_no_cheaper_point_equals_one_of_the_pareto_front():
    points = [(3, 0.9), (1, 0.5), (2, 0.5), (4, 0.8), (2, 0.7)]
    assert pareto(points, higher=True) == [(1, 0.5), (2, 0.7), (3, 0.9)]
    assert pareto(points, higher=False) == [(1, 0.5)]


def test_the_critical_difference_is_drawn_if_autorank_is_installed(tmp_path, record, report):
    pytest.importorskip("autorank")
    for i, rate in enumerate((0.1, 0.2, 0.3, 0.4, 0.5)):
        for method, gain in (("ce", 0.0), ("kd", 0.05), ("at", 0.02)):
            record(f"method={method}", "noise=symmetric", f"noise.rate={rate}", accuracy=0.8 - i / 20 + gain)
    _, out, _ = report("--html", str(tmp_path / "r.html"), "--csv", "-")
    assert out.startswith("metric,")  # autorank prints, too, but not here
    assert "meanrank" not in out
    # Nemenyi: q(0.05, 3) / sqrt 2 = 2.343, times sqrt(3 * 4 / (6 * 5)) = 1.48
    assert "critical difference 1.48" in (tmp_path / "r.html").read_text()


def test_a_filter_on_teachers_keeps_runs_without_teacher_and_runs_on_clean_data(record, report):
    noisy = [*NOISY, "teacher.condition=same"]
    record("method=ce", *NOISY, accuracy=0.8)
    record("method=ce", accuracy=0.9)
    record("method=kd", accuracy=0.91)
    record("method=kd", *noisy, accuracy=0.7)
    record("method=kd", *NOISY, "teacher.condition=clean", accuracy=0.85)
    _, out, _ = report("teacher.condition=clean", "--csv", "-")
    rows = [(row["method"], row["noise"], row["mean"]) for row in csv.DictReader(io.StringIO(out))]
    assert rows == [
        ("ce", "none", "0.9"), ("kd", "none", "0.91"),
        ("ce", "symmetric0.4", "0.8"), ("kd", "symmetric0.4", "0.85"),
    ]  # fmt: skip
    _, out, _ = report("teacher.condition=clean", "method=kd", "--csv", "-")
    assert [row["method"] for row in csv.DictReader(io.StringIO(out))] == ["kd", "kd"]


def test_a_filter_resolves_an_ambiguous_baseline(record, report):
    record("method=kd", accuracy=0.9)
    record("method=kd", "method.temperature=2", accuracy=0.8)
    record("method=at", accuracy=0.95)
    code, _, err = report("--baseline", "kd")
    assert code == 2
    assert "--baseline kd is ambiguous" in err
    _, out, _ = report("--baseline", "kd", "method.temperature=2", "--csv", "-")
    kd, at = csv.DictReader(io.StringIO(out))  # at has no temperature: the filter does not apply
    assert (kd["method"], kd["mean"], at["method"], float(at["gain"])) == ("kd", "0.8", "at", pytest.approx(0.15))


def test_plots_are_written_to_separate_files(record, report, tmp_path):
    for seed in range(2):
        for rate in ("noise.rate=0.2", "noise.rate=0.4"):
            record("method=ce", "noise=symmetric", rate, seed=seed, accuracy=0.5, epochs=(0.5, 0.7))
            record("method=kd", "noise=symmetric", rate, seed=seed, accuracy=0.6, epochs=(0.5, 0.7))
    folder = tmp_path / "figures"
    assert report("--plots", str(folder))[0] == 0
    names = {path.name for path in folder.iterdir()}
    assert {"test_accuracy-noise_curve.svg", "test_accuracy-learning_curves.svg"} <= names
    text = (folder / "test_accuracy-noise_curve.svg").read_text()
    assert '<svg style="background: white" ' in text
    assert text.count("http") == text.count("http://www.w3.org") + text.count("https://www.w3.org")
    code, _, err = report("--plots", str(tmp_path / "no" / "folder"))
    assert (code, "there is no folder" in err) == (2, True)
