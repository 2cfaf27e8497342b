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

from kdbench.config import plugins
from kdbench.config.check import check
from kdbench.config.compose import CONFIG_ERRORS, register, version_base
from kdbench.config.explain import explain
from kdbench.config.groups import CONF
from kdbench.errors import RunFailed, UserError
from kdbench.specs.resolve import resolve
from kdbench.sweeps import sweep
from kdbench.training import signals
from kdbench.training.conduct import conduct


@hydra.main(config_path=str(CONF), config_name="train", version_base=version_base())
def run(cfg: DictConfig) -> float | None:
    """Carry out one composed configuration; returns the validation accuracy, for sweepers that search."""
    hydra_cfg = HydraConfig.get()
    if hydra_cfg.mode == RunMode.MULTIRUN:
        record = sweep.job(cfg, hydra_cfg)
    else:
        try:
            record = conduct(resolve(check(cfg, hydra_cfg.runtime.choices)))
        except (UserError, RunFailed) as error:
            _stop(error)  # here, because Hydra would add a line to it
    result = record.result
    return result["val"]["accuracy"] if result and result["val"] else None


def main() -> None:
    """Let Hydra compose and `run`; what the user can mend is one line and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us whole, and we say them in a line
    signals.listen()
    try:
        plugins.add_from(sys.argv[1:])
        register()
        run()
    except (UserError, RunFailed) as error:
        _stop(error)
    except CONFIG_ERRORS as error:
        _stop(UserError(explain(error)))
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
