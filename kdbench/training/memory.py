"""Memory that is still free on the device of a training."""

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")


def free_share(device: torch.device) -> float:
    """Free fraction of the memory of a CUDA device, or of this machine; 1 where nobody knows."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free / total
    if not _MEMINFO.exists():
        return 1.0
    amounts = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    free, total = (int(amounts[key].split()[0]) for key in ("MemAvailable", "MemTotal"))
    return free / total
