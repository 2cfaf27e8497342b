"""A run in a process of its own, so that what ends that process ends that run only.

Launchers with processes reuse each process for one job after another: the next job would inherit memory that was not
freed, or a device in a bad state, and a worker that is killed takes the whole pool with it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback

from kdbench.config.frozen import FrozenDict
from kdbench.errors import RunFailed, UserError
from kdbench.records.record import Record
from kdbench.records.writer import reason
from kdbench.specs.resolve import resolve
from kdbench.specs.spec import RunSpec
from kdbench.training import signals
from kdbench.training.conduct import conduct as conduct_here

_PATIENCE = 20  # seconds that an interrupted run gets to write down its state
_LOOK = 0.5  # seconds between two checks that the parent is alive


def conduct(spec: RunSpec, overrides: list[str]) -> Record:
    """Bring a run to its end in a process of its own.

    Args:
        spec: of the run.
        overrides: those that it was composed from, for its record.

    Raises:
        UserError: as `kdbench.training.conduct.conduct`.
        RunFailed: as there; also for an error of any other kind, and where the process was killed.
    """
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "kdbench.sweeps.isolated", str(write_end)]
    with os.fdopen(read_end) as reader:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[write_end], text=True)
        os.close(write_end)
        try:
            process.communicate(json.dumps({"config": spec.config, "role": spec.role, "overrides": overrides}))
            failure = reader.read()
        except BaseException:
            process.terminate()
            process.wait(_PATIENCE)
            raise
    if process.returncode == 0:
        return spec.record
    if failure:
        kind, message, why = json.loads(failure)
        raise UserError(message) if kind == "UserError" else RunFailed(message, why)
    why = _ending(process.returncode)
    raise RunFailed(f"{spec.name} failed: {why}; see {spec.record.log}", why)


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


def main() -> int:
    """Conduct the run that standard input describes, and report a failure to the parent process."""
    write_end = int(sys.argv[1])
    os.set_inheritable(write_end, False)
    signals.listen()
    _end_with(os.getppid())
    order = json.load(sys.stdin)
    sys.argv = ["kdbench-train", *order["overrides"]]  # the command that does the same, for env.json
    try:
        conduct_here(resolve(FrozenDict.of(order["config"]), order["role"]))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (UserError, RunFailed) as error:
        failure = [type(error).__name__, str(error), getattr(error, "why", None)]
    except Exception as error:
        traceback.print_exc()
        failure = ["RunFailed", reason(error), None]
    else:
        return 0
    os.write(write_end, json.dumps(failure).encode())
    return 1


def _end_with(parent: int) -> None:
    """Interrupt this process when its parent has ended: nobody waits for its result any more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
