"""The verbs of `kdbench`, a module each: its arguments, what it calls, and what it prints.

A module has `HELP`, `add_arguments(parser)` and `run(args)`, which returns the exit code; with `TAKES_PLUGINS` the verb
has the option `--config-dir`. `kdbench.cli` lists them all.
"""
