"""What a result depends on beside its configuration: versions, machine, code state."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdbench.config.groups import CONF


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that a result depends on, and of kdbench's own source."""
    names = "kdbench torch torchvision pytorch-lightning timm hydra-core omegaconf numpy".split()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "kdbench source": _own_source(),
    }


def code_version(result: Mapping[str, Any]) -> str:
    """The version of kdbench that a result was made with: its number, and a hash of its source if that was recorded."""
    return " ".join(result["versions"][key] for key in ("kdbench", "kdbench source") if key in result["versions"])


@cache
def _own_source() -> str:
    """Hash of kdbench's Python and YAML files, 12 hex digits: what a version number says only of releases."""
    package = Path(__file__).parents[1]
    files = sorted([*package.rglob("*.py"), *CONF.rglob("*.yaml")])
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()[:12]


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
