"""A local stand-in for W&B's server."""

import http.server
import json
from collections import defaultdict
from typing import Any

KEY = "a" * 40


class Server(http.server.ThreadingHTTPServer):
    """As much of W&B's server as runs, `wandb sync` and the dashboard need.

    Attributes:
        url: its address.
        deaf: whether it answers every request with an error.
        deaf_after_start: whether it becomes deaf once a run has started.
        refused: ids of the runs that it refuses.
        history: rows of each run, by id.
        runs: attributes of each run, by id.
        views: workspaces and reports.
        received: uploaded files by path, and everything else that was streamed.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.deaf = self.deaf_after_start = False
        self.refused: set[str] = set()
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.runs: dict[str, dict[str, Any]] = defaultdict(dict)
        self.views: list[dict[str, Any]] = []
        self.received: dict[str, Any] = {}


class Handler(http.server.BaseHTTPRequestHandler):
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
            self.server.received[self.path] = body.decode()
        if self.path.endswith("/file_stream"):
            stream = json.loads(body)
            lines = stream.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history[self.path.split("/")[-2]] += [json.loads(line) for line in lines]
            self.server.received |= stream
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
            bucket = {"id": "x", "name": values["name"], "displayName": "", "config": "{}", "project": project}
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
            project = {"id": "x", "internalId": "7"} if values["projectName"] == "kdbench" else None
            return {"data": {"project": project}}
        if "GetProjects" in query["query"]:
            node = {"id": "x", "name": "kdbench", "entityName": values["entity"], "createdAt": "2026-01-01T00:00:00Z"}
            edges = [{"node": {**node, "isBenchmark": False, "user": None}}]
            return {"data": {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}}}
        return {"data": {}}

    def log_message(self, *_: Any) -> None:
        pass
