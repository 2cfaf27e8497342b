"""`kdbench check`: does a method keep the rules that every method keeps? It trains small networks for seconds."""

import argparse
import re
import warnings

from kdbench.config.frozen import FrozenDict
from kdbench.config.networks import NETWORK_KEYS
from kdbench.config.overrides import from_overrides
from kdbench.console import console
from kdbench.errors import UserError
from kdbench.specs.resolve import resolve

HELP = "hold a method against the rules that every method keeps"
TAKES_PLUGINS = True
_ALLOWED = re.compile(
    rf"method|plus|student|teacher|(method|plus)\..+|(student|teacher)\.({'|'.join(NETWORK_KEYS)})(\..+)?"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The method, and its options."""
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE",
                        help="method=NAME, and options of method, plus, student, teacher, as in a run")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print what each rule says about the method; returns 1 if one is broken."""
    keys = [override.partition("=")[0].lstrip("+~") for override in args.overrides]
    if "method" not in keys:
        raise UserError("which method? method=NAME must be given; `kdbench ls methods` lists them")
    for key, override in zip(keys, args.overrides, strict=True):
        if not _ALLOWED.fullmatch(key):
            raise UserError(f"{override} is not possible: the rules need a short run on small images of their own; "
                            f"allowed are method, plus, student and teacher, and their options")  # fmt: skip
    resolve(from_overrides(["logger=none", *args.overrides]))  # refuses in a second what needs no networks
    from kdbench.conformance.subject import Subject
    from kdbench.conformance.suite import RULES, verdicts

    subject = Subject.of(["logger=none", *args.overrides])
    resolve(FrozenDict.of(subject.config))  # refuses what needs no training
    width = max(len(rule.name) for rule in RULES)
    counts = dict.fromkeys(("holds", "broken", "not applicable"), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rule, state, why in verdicts(subject):
            counts[state] += 1
            statement = f" (the rule: {rule.statement})" if state == "broken" else ""
            console.print(f"{rule.name:<{width}}  {state}" + (f": {why}{statement}" if why else ""))
    console.print(
        f"{subject.name}: {counts['holds']} of {len(RULES)} rules hold, {counts['broken']} broken, "
        f"{counts['not applicable']} not applicable"
    )
    if "dependencies" in subject.config["method"]:
        console.print("the runs that the method depends on were not made: nothing was checked of `receive`")
    return int(counts["broken"] > 0)
