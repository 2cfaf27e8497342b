"""What a result depends on beside its configuration: versions, machine, code state."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    names = "kdbench torch torchvision pytorch-lightning timm hydra-core omegaconf numpy".split()
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def environment() -> dict[str, Any]:
    """Command, machine, versions and code state, for `env.json`."""
    import torch

    changes = _git("status", "--porcelain") if shutil.which("git") else None
    return {
        "command": sys.argv,
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "git": _git("rev-parse", "HEAD") if changes is not None else None,
        "git_changes": changes.splitlines() if changes else [],
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
