"""The entry point: `kdbench-train` and `python -m kdbench.train`. One screen, one story."""

import os
import signal
import sys
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kdbench import config, interrupts
from kdbench.errors import RunFailed, UserError


@hydra.main(config_path=str(config.CONF), config_name="train", version_base=config.version_base())
def sentence(cfg: DictConfig) -> float | None:
    """Carry out one composed configuration; returns the validation accuracy, for sweepers."""
    job = HydraConfig.get()
    try:
        checked = config.check(cfg, job.runtime.choices)
        from kdbench.experiment import conduct

        result = conduct(checked).result()
    except (UserError, RunFailed) as error:
        if job.mode == RunMode.RUN:
            _stop(error)
        print(f"error: job {job.job.num} ({' '.join(job.overrides.task)}): {error}", file=sys.stderr)
        raise  # a sweep goes on with its other jobs
    return result["val"]["accuracy"] if result else None


def main() -> None:
    """Run Hydra; what the user can mend is one line and exit code 2."""
    config.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us whole, and we say them in a line
    interrupts.listen()
    try:
        sentence()
    except (UserError, RunFailed) as error:
        _stop(error)
    except config.CONFIG_ERRORS as error:
        _stop(UserError(config.explain(error)))
    except KeyboardInterrupt:
        _interrupted(128 + signal.SIGINT)
    except SystemExit as end:
        if end.code == 128 + signal.SIGTERM:
            _interrupted(end.code)
        raise


def _interrupted(code: int) -> NoReturn:
    print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
    sys.exit(code)


def _stop(error: UserError | RunFailed) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2 if isinstance(error, UserError) else 1)


if __name__ == "__main__":
    main()
