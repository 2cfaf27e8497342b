"""The entry point: `kdbench-train` and `python -m kdbench.train`. One screen, one story."""

import os
import shlex
import signal
import sys
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kdbench import config, experiment, interrupts, sweep
from kdbench.errors import RunFailed, UserError


@hydra.main(config_path=str(config.CONF), config_name="train", version_base=config.version_base())
def sentence(cfg: DictConfig) -> float | None:
    """Carry out one composed configuration; returns the validation accuracy, for sweepers."""
    hydra_cfg = HydraConfig.get()
    if hydra_cfg.mode == RunMode.MULTIRUN:
        run = sweep.job(cfg, hydra_cfg)
    else:
        try:
            run = experiment.conduct(config.check(cfg, hydra_cfg.runtime.choices))
        except (UserError, RunFailed) as error:
            _stop(error)  # here, because Hydra would add a line to it
    result = run.result()
    return result["val"]["accuracy"] if result and result["val"] else None


def main() -> None:
    """Run Hydra; what the user can mend is one line and exit code 2."""
    config.register()
    sweep.register()
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
    command = shlex.join(["kdbench-train", *sys.argv[1:]])
    print(f"interrupted; the same command continues from the last checkpoint: {command}", file=sys.stderr)
    sys.exit(code)


def _stop(error: UserError | RunFailed) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2 if isinstance(error, UserError) else 1)


if __name__ == "__main__":
    main()
