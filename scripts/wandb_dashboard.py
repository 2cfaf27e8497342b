"""The W&B dashboard of a project as code: a workspace and a report about the runs that kdbench mirrors there.

    pip install 'kdbench[dashboard]'
    python scripts/wandb_dashboard.py --entity ME --project kdbench --baseline ce
    python scripts/wandb_dashboard.py --entity ME --dry-run      # print the whole plan as JSON; uses no network

Every call creates a new workspace view and a new report; delete the old ones in the app. Runs are grouped by setting
(W&B's `Group`), which is everything that changes a result except the seed. To look at one data set or method only,
filter the run table by tag.
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

from kdbench.console import console
from kdbench.data import noise, sources
from kdbench.errors import UserError
from kdbench.loggers.mirror import one_line
from kdbench.loggers.wandb_sync import log_in
from kdbench.records.identity import Contents, identify
from kdbench.records.record import Record, all_records, default_outputs

NAME = "kdbench"
MAX_SETTINGS = 100  # in one panel; the app's default is 10
COLUMNS = [
    "run:displayName",
    "run:state",
    # the app names a nested key of the configuration `<first>.value.<rest>`
    *(f"config:{first}.value.{rest}" for first, rest in (
        ("method", "name"), ("student", "name"), ("teacher", "condition"), ("dataset", "name"),
        ("noise", "name"), ("noise", "rate"), ("imbalance", "name"), ("recipe", "epochs"))),
    "config:seed.value",
    # the teacher comes from the summary: the configuration names one even for runs that use none
    *(f"summary:{key}" for key in (
        "teacher/name", "teacher/test_accuracy", "test/accuracy", "val/accuracy", "test/nll", "cost/train_seconds")),
]  # fmt: skip


class NotSaved(RuntimeError):
    """The server refused the dashboard, has no such project, or could not be reached."""


class Section(NamedTuple):
    """A section of the workspace and of the report.

    Attributes:
        name: its heading.
        text: its introduction, in the report only.
        panels: its plots.
    """

    name: str
    text: str
    panels: list[Any]


def bars(*metrics: str) -> list[Any]:
    """One bar plot per metric of the summary: a bar per setting, mean and standard deviation over its seeds."""
    over_seeds = {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return [
        wr.BarPlot(
            title=metric, metrics=[metric], max_runs_to_show=MAX_SETTINGS, max_bars_to_show=MAX_SETTINGS, **over_seeds
        )
        for metric in metrics
    ]


def curves(*metrics: str) -> list[Any]:
    """One line plot per metric of the epochs: a line per setting, mean and standard deviation over its seeds."""
    over_seeds = {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return [
        wr.LinePlot(title=metric, x="epoch", y=[metric], title_x="epoch", max_runs_to_show=MAX_SETTINGS, **over_seeds)
        for metric in metrics
    ]


def scatter(x: Any, *metrics: str, log_x: bool = False) -> list[Any]:
    """One scatter plot against `x` per metric of the summary: a point per setting, or per seed of an expanded group."""
    return [
        wr.ScatterPlot(title=f"{metric} against {x.name}", x=x, y=wr.SummaryMetric(metric), log_x=log_x or None)
        for metric in metrics
    ]


def sections() -> list[Section]:
    """The sections in order. Panels stay empty if the project has no such metrics."""
    rate, factor, gamma = (wr.Config(key) for key in ("noise.rate", "imbalance.factor", "imbalance.gamma"))
    train_seconds = wr.SummaryMetric("cost/train_seconds")
    teacher_accuracy = wr.SummaryMetric("teacher/test_accuracy")
    return [
        Section(
            "Accuracy",
            "Accuracy on the test set, which is evaluated once, after the last epoch, and on the validation set. Each "
            "bar is a setting: the mean over its seeds, with their standard deviation.",
            bars("test/accuracy", "val/accuracy", "test/balanced_accuracy", "test/top5"),
        ),
        Section(
            "Learning curves",
            "Mean and standard deviation over the seeds of each setting. Losses that a method adds are named after it.",
            [
                *curves("val/accuracy", "val/nll", "train/loss", "train/ce", "train/kd", "lr"),
                wr.LinePlot(title="all losses", x="epoch", metric_regex="^train/", max_runs_to_show=MAX_SETTINGS),
            ],
        ),
        Section(
            "Label noise",
            "Accuracy against the noise rate. Among the training images with a wrong label: the fractions for which "
            "the student predicts the wrong label (memorised), the true label, and the same class as the teacher.",
            [*scatter(rate, "test/accuracy", "test/nll"), *curves("noisy/wrong", "noisy/true", "noisy/teacher")],
        ),
        Section(
            "Class imbalance",
            "Accuracy against the ratio of the largest class to the smallest (long tail, step) and against gamma "
            "(power law). Accuracy on the classes with many, medium and few training images.",
            [
                *scatter(factor, "test/accuracy", "test/balanced_accuracy", log_x=True),
                *scatter(gamma, "test/accuracy"),
                *bars("test/many", "test/medium", "test/few"),
            ],
        ),
        Section(
            "Calibration",
            "Lower is better. The scaled error is measured after temperature scaling fitted on the validation set.",
            bars("test/nll", "test/brier", "test/ece15", "test/adaptive_ece", "test/scaled_ece15"),
        ),
        Section(
            "Teachers",
            "Student accuracy against teacher accuracy. How closely the student follows its teacher: the fraction of "
            "equal predictions, and the KL divergence of their probabilities in nats.",
            [*scatter(teacher_accuracy, "test/accuracy"), *bars("fidelity/agreement", "fidelity/kl")],
        ),
        Section(
            "Cost",
            "Training time in seconds, separately for the student and its teacher. Times from different machines are "
            "not comparable.",
            [
                *scatter(train_seconds, "test/accuracy", log_x=True),
                *bars("cost/train_seconds", "cost/teacher_seconds", "cost/peak_memory_bytes"),
                *bars("cost/parameters", "cost/extra_parameters", "cost/flops"),
            ],
        ),
        Section("Differences", "The options in which the runs differ.", [wr.RunComparer(diff_only="split")]),
    ]


def workspace(entity: str, project: str, baseline: str | None = None) -> ws.Workspace:
    """The workspace: the students grouped by setting, best first.

    Args:
        entity: W&B user or team.
        project: W&B project.
        baseline: id of the run with which the app compares the others, or None.
    """
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=section.name, panels=section.panels, is_open=section.name == "Accuracy")
            for section in sections()
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=MAX_SETTINGS),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("JobType") != "teacher"),
            groupby=[expr.Metric("Group")],
            order=[expr.Ordering(expr.Summary("test/accuracy"), ascending=False)],
            pinned_columns=list(COLUMNS),
            baseline_run=baseline,
        ),
    )


def runs(name: str, job_type: str) -> wr.Runset:
    """Runs grouped by setting, best first.

    Args:
        name: of the run set.
        job_type: condition on the job type: `!= "teacher"` for students, `== "teacher"` for teachers.
    """
    return wr.Runset(
        name=name,
        filters=f"Metric('JobType') {job_type}",
        groupby=["group"],
        order=[wr.OrderBy(wr.SummaryMetric("test/accuracy"))],
        pinned_columns=list(COLUMNS),
    )


def report(entity: str, project: str) -> wr.Report:
    """The report: the plots of the workspace with an introduction to each section, and the runs of the teachers.

    Args:
        entity: W&B user or team.
        project: W&B project.
    """
    blocks: list[Any] = [wr.TableOfContents()]
    for section in sections():
        students = [runs("students", '!= "teacher"')]
        blocks += [wr.H2(section.name), wr.P(section.text), wr.PanelGrid(runsets=students, panels=section.panels)]
        if section.name == "Teachers":
            teachers, panels = [runs("teachers", '== "teacher"')], bars("test/accuracy", "cost/train_seconds")
            blocks += [wr.P("The runs of the teachers:"), wr.PanelGrid(runsets=teachers, panels=panels)]
    return wr.Report(
        entity=entity, project=project, title="Distillation methods", blocks=blocks, width="fluid",
        description="Distillation methods by setting, which is everything that changes a result except the seed.",
    )  # fmt: skip


def plan(view: ws.Workspace, document: wr.Report) -> dict[str, Any]:
    """The workspace and the report as W&B would receive them, in plain values."""
    return {
        "workspace": view._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "report": document._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def baseline_run(run: str, outputs: Path) -> str:
    """The W&B id of the run with which the others are compared.

    Args:
        run: the id of a run; or a method such as `ce` or `at+kd`, for the run with the smallest seed of its only
            setting.
        outputs: root of the records in which the method is looked up.

    Raises:
        UserError: the method has no finished run, or runs of several settings.
    """
    if re.fullmatch(r"[0-9a-f]{12}(-\d+)?", run):
        return run
    settings: dict[str, list[Record]] = {}
    for record in _students(outputs):
        if record.name.partition("-")[0] == run:
            settings.setdefault(_setting(record), []).append(record)
    baselines = [min(seeds, key=lambda record: record.config["seed"]) for seeds in settings.values()]
    if not baselines:
        raise UserError(f"--baseline {run}: there is no finished W&B run of this method below {outputs}")
    if len(baselines) > 1:
        examples = ", ".join(record.directory.name for record in baselines)
        raise UserError(f"--baseline {run}: below {outputs} are several settings: {examples}; give the id of a run")
    return baselines[0].attempt


def _students(outputs: Path) -> Iterator[Record]:
    for record in all_records(outputs):
        if record.result and record.result["role"] != "teacher" and record.config["logger"]["kind"] == "wandb":
            yield record


def _setting(record: Record) -> str:
    """The setting, which runs share that differ only in their seeds. Reads no data but image trees and label files."""
    config, teacher = record.config, record.finished["teacher"]
    contents = Contents(images=sources.fingerprint(config["dataset"]), labels=noise.fingerprint(config["noise"]))
    return identify(config, contents, {"teacher": teacher["id"]} if teacher else {}).setting


def save(view: ws.Workspace, document: wr.Report) -> None:
    """Send the workspace and the report, and print their addresses.

    Raises:
        UserError: there is no key, W&B rejects it, or W&B cannot be reached.
        NotSaved: W&B refused them.
    """
    log_in()
    for block in document.blocks:
        for runset in getattr(block, "runsets", []):
            # not earlier: with these set, building the plan would ask the server for the project
            runset.entity, runset.project = document.entity, document.project
    try:
        # the report first: only it is refused if there is no such project
        console.print(f"report: {document.save().url}")
        console.print(f"workspace: {view.save().url}")
    except Exception as error:  # the packages have no common class of errors
        raise NotSaved(f"not saved: {one_line(error)}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Build the workspace and the report, then send or print them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", default="kdbench", help="W&B project (default kdbench)")
    parser.add_argument("--baseline", help="the id of a run, or a method with runs in KDBENCH_OUTPUTS")
    parser.add_argument("--dry-run", action="store_true", help="print the plan as JSON and send nothing")
    args = parser.parse_args(argv)
    try:
        baseline = baseline_run(args.baseline, default_outputs()) if args.baseline else None
        view, document = workspace(args.entity, args.project, baseline), report(args.entity, args.project)
        if args.dry_run:
            print(json.dumps(plan(view, document), indent=2))
        else:
            save(view, document)
    except (UserError, NotSaved) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
