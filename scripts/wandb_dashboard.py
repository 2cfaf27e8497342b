"""The W&B dashboard of a project as code: a workspace and a report over the runs that kdbench mirrors there.

    pip install 'kdbench[dashboard]'
    python scripts/wandb_dashboard.py --entity ME --project kdbench --baseline ce
    python scripts/wandb_dashboard.py --entity ME --dry-run      # the whole plan as JSON, without network

Every call makes a new view and a new report; delete the old ones in the app. Runs are grouped by setting (W&B's
`Group`): all that changes a result, but the seed. To look at one data set or method, filter the run table by tag.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr
except ImportError:
    sys.exit("error: the dashboard needs a package: pip install 'kdbench[dashboard]'")

from kdbench import records
from kdbench.console import console
from kdbench.errors import UserError
from kdbench.experiment import run_of
from kdbench.sync import log_in

NAME = "kdbench"
MANY = 100  # settings in a panel; the app shows 10 unless told
COLUMNS = [
    "run:displayName",
    "run:state",
    # the app keeps a nested key of the configuration under `<first>.value.<rest>`
    *(f"config:{first}.value.{rest}" for first, rest in (
        ("method", "name"), ("student", "name"), ("teacher", "condition"), ("dataset", "name"),
        ("noise", "name"), ("noise", "rate"), ("imbalance", "name"), ("recipe", "epochs"))),
    "config:seed.value",
    # the teacher from the summary: a run that has none still has one in its configuration
    *(f"summary:{key}" for key in (
        "teacher/name", "teacher/test_accuracy", "test/accuracy", "val/accuracy", "test/nll", "cost/train_seconds")),
]  # fmt: skip


class NotSaved(RuntimeError):
    """The server refuses the dashboard, has no such project or cannot be reached."""


class Part(NamedTuple):
    """A section of the workspace and a chapter of the report."""

    name: str
    text: str
    panels: list[Any]


def bars(*metrics: str) -> list[Any]:
    """A panel for each final number: a bar a setting, mean and standard deviation over its seeds."""
    over_seeds = {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return [
        wr.BarPlot(title=metric, metrics=[metric], max_runs_to_show=MANY, max_bars_to_show=MANY, **over_seeds)
        for metric in metrics
    ]


def curves(*metrics: str) -> list[Any]:
    """A panel for each number of an epoch: a line a setting, mean and standard deviation over its seeds."""
    over_seeds = {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return [
        wr.LinePlot(title=metric, x="epoch", y=[metric], title_x="epoch", max_runs_to_show=MANY, **over_seeds)
        for metric in metrics
    ]


def against(x: Any, *metrics: str, log_x: bool = False) -> list[Any]:
    """A panel for each final number: a point a setting, or a seed where its group is unfolded, over `x`."""
    return [
        wr.ScatterPlot(title=f"{metric} against {x.name}", x=x, y=wr.SummaryMetric(metric), log_x=log_x or None)
        for metric in metrics
    ]


def parts() -> list[Part]:
    """What is shown, in order. Panels whose numbers a project does not have stay empty."""
    rate, factor, gamma = (wr.Config(key) for key in ("noise.rate", "imbalance.factor", "imbalance.gamma"))
    seconds, taught = wr.SummaryMetric("cost/train_seconds"), wr.SummaryMetric("teacher/test_accuracy")
    return [
        Part(
            "Accuracy",
            "After the last epoch, on the test set, which is looked at once; validation beside it. A bar is a setting: "
            "mean over its seeds, with their standard deviation.",
            bars("test/accuracy", "val/accuracy", "test/balanced_accuracy", "test/top5"),
        ),
        Part(
            "Learning curves",
            "Mean over the seeds of a setting and their standard deviation. A method's own losses are named after it.",
            [
                *curves("val/accuracy", "val/nll", "train/loss", "train/ce", "train/kd", "lr"),
                wr.LinePlot(title="all losses", x="epoch", metric_regex="^train/", max_runs_to_show=MANY),
            ],
        ),
        Part(
            "Label noise",
            "Accuracy over the noise rate; and of the training images with a wrong label, the share that the student "
            "predicts as that label (memorised), as the true one, and as the teacher does.",
            [*against(rate, "test/accuracy", "test/nll"), *curves("noisy/wrong", "noisy/true", "noisy/teacher")],
        ),
        Part(
            "Class imbalance",
            "Accuracy over the ratio of the largest class to the smallest (long tail, step) and over gamma (power "
            "law); accuracy of classes with many, medium and few training images.",
            [
                *against(factor, "test/accuracy", "test/balanced_accuracy", log_x=True),
                *against(gamma, "test/accuracy"),
                *bars("test/many", "test/medium", "test/few"),
            ],
        ),
        Part(
            "Calibration",
            "Less is better. The scaled error is after one temperature, fitted on validation data.",
            bars("test/nll", "test/brier", "test/ece15", "test/adaptive_ece", "test/scaled_ece15"),
        ),
        Part(
            "Teachers",
            "Student over teacher accuracy; and how far the student does as the teacher: share of equal predictions, "
            "and divergence of the probabilities in nats.",
            [*against(taught, "test/accuracy"), *bars("fidelity/agreement", "fidelity/kl")],
        ),
        Part(
            "Cost",
            "Training seconds of the student, and of its teacher apart. Seconds of different machines do not compare.",
            [
                *against(seconds, "test/accuracy", log_x=True),
                *bars("cost/train_seconds", "cost/teacher_seconds", "cost/peak_memory_bytes"),
                *bars("cost/parameters", "cost/extra_parameters", "cost/flops"),
            ],
        ),
        Part("Differences", "What the runs do not have in common.", [wr.RunComparer(diff_only="split")]),
    ]


def workspace(entity: str, project: str, baseline: str | None = None) -> ws.Workspace:
    """The workspace: students by setting, best first, and the baseline run that the app compares others with.

    Args:
        entity: W&B user or team.
        project: W&B project.
        baseline: id of a run.
    """
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=part.name, panels=part.panels, is_open=part.name == "Accuracy") for part in parts()],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=MANY),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("JobType") != "teacher"),
            groupby=[expr.Metric("Group")],
            order=[expr.Ordering(expr.Summary("test/accuracy"), ascending=False)],
            pinned_columns=list(COLUMNS),
            baseline_run=baseline,
        ),
    )


def runs(name: str, job_type: str) -> wr.Runset:
    """Students (`!= "teacher"`) or teachers (`== "teacher"`) by setting, best first."""
    return wr.Runset(
        name=name,
        filters=f"Metric('JobType') {job_type}",
        groupby=["group"],
        order=[wr.OrderBy(wr.SummaryMetric("test/accuracy"))],
        pinned_columns=list(COLUMNS),
    )


def report(entity: str, project: str) -> wr.Report:
    """The report: what the workspace shows, with words, and the teachers' own runs.

    Args:
        entity: W&B user or team.
        project: W&B project.
    """
    blocks: list[Any] = [wr.TableOfContents()]
    for part in parts():
        panels = part.panels
        runsets = [runs("students", '!= "teacher"')]
        blocks += [wr.H2(part.name), wr.P(part.text), wr.PanelGrid(runsets=runsets, panels=panels)]
        if part.name == "Teachers":
            blocks += [
                wr.P("The teachers' own runs:"),
                wr.PanelGrid(
                    runsets=[runs("teachers", '== "teacher"')], panels=bars("test/accuracy", "cost/train_seconds")
                ),
            ]
    return wr.Report(
        entity=entity, project=project, title="Distillation methods", blocks=blocks, width="fluid",
        description="Distillation methods by setting; a setting is all that changes a result, but the seed.",
    )  # fmt: skip


def plan(view: ws.Workspace, text: wr.Report) -> dict[str, Any]:
    """Both as W&B would get them, in plain values."""
    return {
        "workspace": view._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "report": text._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def baseline_run(word: str, outputs: Path) -> str:
    """The W&B id of the run that others are compared with.

    Args:
        word: an id; or a method, as `ce` or `at+kd`, of whose only setting the smallest seed is meant.
        outputs: root of the records in which the method is looked up.

    Raises:
        UserError: no finished run of such a method, or several settings.
    """
    if re.fullmatch(r"[0-9a-f]{12}(-\d+)?", word):
        return word
    found: dict[str, list[records.Record]] = {}
    for record in _students(outputs):
        if record.name.partition("-")[0] == word:
            found.setdefault(run_of(record.config).identity.setting, []).append(record)
    if len(found) != 1:
        several = f"several settings: {', '.join(found)}; give the id of a run" if found else "no finished W&B run"
        raise UserError(f"--baseline {word}: below {outputs} that is {several}")
    (seeds,) = found.values()
    return min(seeds, key=lambda record: record.config["seed"]).attempt


def _students(outputs: Path) -> Iterator[records.Record]:
    for record in records.records(outputs):
        if record.result and record.result["role"] != "teacher" and record.config["logger"]["kind"] == "wandb":
            yield record


def save(view: ws.Workspace, text: wr.Report) -> None:
    """Send both, and say where they are.

    Raises:
        UserError: W&B cannot be reached, or there is no key that it knows.
        NotSaved: see there.
    """
    log_in()
    for block in text.blocks:
        for runset in getattr(block, "runsets", []):
            # only now: the server is asked for such a project when the report is put together
            runset.entity, runset.project = text.entity, text.project
    try:
        # first the one that is refused where there is no such project
        console.print(f"report: {text.save().url}")
        console.print(f"workspace: {view.save().url}")
    except Exception as error:  # the packages have no common class of errors
        raise NotSaved(f"not saved: {type(error).__name__}: {' '.join(str(error).split())}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Build both; send them, or print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", default="kdbench", help="W&B project (default kdbench)")
    parser.add_argument("--baseline", help="a method, looked up in KDBENCH_OUTPUTS, or a run's id")
    parser.add_argument("--dry-run", action="store_true", help="print the plan as JSON and send nothing")
    args = parser.parse_args(argv)
    try:
        baseline = baseline_run(args.baseline, records.default_outputs()) if args.baseline else None
        view, text = workspace(args.entity, args.project, baseline), report(args.entity, args.project)
        if args.dry_run:
            print(json.dumps(plan(view, text), indent=2))
        else:
            save(view, text)
    except (UserError, NotSaved) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
