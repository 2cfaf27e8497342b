"""What wandb wrote, read back; and as much of its server as is needed to take it."""

import http.server
import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

KEY = "a" * 40


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: protobuf in LevelDB's log format (32 KiB blocks, 7-byte headers)."""
    from wandb.proto import wandb_internal_pb2 as protocol

    data, position, record = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield protocol.Record.FromString(record)  # type: ignore[attr-defined]
            record = b""


def stored(file: Path) -> SimpleNamespace:
    """Identity, configuration, history, summary and exit code in a `.wandb` file."""
    found = SimpleNamespace(file=file, history=[], summary={}, exit_code=None, step_metric={})

    def items(entries: Any) -> dict[str, Any]:
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in entries}

    for record in records(file):
        match record.WhichOneof("record_type"):
            case "run":
                found.run, found.config = record.run, items(record.run.config.update)
            case "history":
                found.history.append({k: v for k, v in items(record.history.item).items() if k[0] != "_"})
            case "metric":
                found.step_metric[record.metric.glob_name] = record.metric.step_metric
            case "summary":
                found.summary |= items(record.summary.update)
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def offline(directory: Path) -> list[SimpleNamespace]:
    return [stored(file) for file in sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))]


class Server(http.server.ThreadingHTTPServer):
    """As much of W&B's server as runs need; `deaf` makes it refuse everything, `refused` the runs of these ids."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.deaf = self.deaf_after_start = False
        self.refused: set[str] = set()
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)  # rows by id of the run
        self.runs: dict[str, dict[str, Any]] = defaultdict(dict)  # what was last said of it, by id
        self.views: list[dict[str, Any]] = []  # workspaces and reports
        self.got: dict[str, Any] = {}


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.deaf:
            self.send_error(503)
            return
        content = json.dumps(self._content(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET = _answer

    def _content(self, body: bytes) -> dict[str, Any]:
        if self.path.startswith("/upload/"):
            self.server.got[self.path] = body.decode()
        if self.path.endswith("/file_stream"):
            sent = json.loads(body)
            lines = sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history[self.path.split("/")[-2]] += [json.loads(line) for line in lines]
            self.server.got |= sent
        if not self.path.endswith("/graphql"):
            return {}
        query = json.loads(body)
        values = query.get("variables") or {}
        if "upsertBucket" in query["query"]:
            if values["name"] in self.server.refused:
                return {"errors": [{"message": "no such project"}]}
            self.server.runs[values["name"]] |= {key: value for key, value in values.items() if value is not None}
            self.server.deaf = self.server.deaf_after_start
            project = {"name": values["project"], "entity": {"name": values.get("entity") or "me"}}
            bucket = {
                "id": "x",
                "name": values["name"],
                "displayName": "",
                "config": "{}",
                "project": project,
            }
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query["query"]:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in values["files"]]
            return {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        if "viewer" in query["query"]:
            return {"data": {"viewer": {"id": "x", "entity": "me", "username": "me", "teams": {"edges": []}}}}
        if "upsertView" in query["query"]:
            self.server.views.append(values)
            project = {"id": "x", "name": values["projectName"], "entityName": values["entityName"]}
            fields = ("type", "name", "displayName", "description", "spec")
            view = {"id": f"view{len(self.server.views)}", "project": project, **{key: values[key] for key in fields}}
            return {"data": {"upsertView": {"view": view, "inserted": True}}}
        if "ProjectInternalId" in query["query"]:
            known = {"id": "x", "internalId": "7"} if values["projectName"] == "kdbench" else None
            return {"data": {"project": known}}
        if "GetProjects" in query["query"]:
            node = {"id": "x", "name": "kdbench", "entityName": values["entity"], "createdAt": "2026-01-01T00:00:00Z"}
            edges = [{"node": {**node, "isBenchmark": False, "user": None}}]
            return {"data": {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}}}
        return {"data": {}}

    def log_message(self, *_: Any) -> None:
        pass
