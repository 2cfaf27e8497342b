"""Reading the files that wandb writes for offline runs."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdbench.records.record import all_records


def entries(file: Path) -> Iterator[Any]:
    """The entries of a `.wandb` file: protobuf in LevelDB's log format (32 KiB blocks, 7-byte headers)."""
    from wandb.proto import wandb_internal_pb2 as protocol

    data, position, entry = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        entry += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole entry, or its last part
            yield protocol.Record.FromString(entry)  # type: ignore[attr-defined]
            entry = b""


def stored(file: Path) -> SimpleNamespace:
    """The run in a `.wandb` file: its identity (`run`), configuration, history, summary, step metrics and exit code."""
    content = SimpleNamespace(file=file, history=[], summary={}, exit_code=None, step_metric={})

    def values(items: Any) -> dict[str, Any]:
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

    for entry in entries(file):
        match entry.WhichOneof("record_type"):
            case "run":
                content.run, content.config = entry.run, values(entry.run.config.update)
            case "history":
                content.history.append({k: v for k, v in values(entry.history.item).items() if k[0] != "_"})
            case "metric":
                content.step_metric[entry.metric.glob_name] = entry.metric.step_metric
            case "summary":
                content.summary |= values(entry.summary.update)
            case "exit":
                content.exit_code = entry.exit.exit_code
    return content


def offline(directory: Path) -> list[SimpleNamespace]:
    """The offline attempts of a run, in the order of their starts."""
    return [stored(file) for file in sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))]


def first_attempts(outputs: Path) -> dict[str, SimpleNamespace]:
    """The first offline attempt of every run, by the name of the run's directory."""
    return {record.directory.name: offline(record.directory)[0] for record in all_records(outputs)}
