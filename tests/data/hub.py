"""A local service that speaks the part of the Hugging Face Hub's API that Minari's `hf://` remote and agents use.

It keeps everything in memory: repositories of files, one commit after the other. Large files go by Git LFS (clients
must set `HF_HUB_DISABLE_XET=1`). Writing needs the token; `fail` answers with errors, `corrupt` damages a file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_tests"
BINARY = (".hdf5", ".png", ".safetensors")


class Hub:
    """What the service holds.

    Attributes:
        url: Where it listens.
        repos: Files by path, by repository.
        objects: LFS objects by SHA-256.
        requests: Method and path of each request so far.
        fail: Status to answer with, by a part of the path.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail: dict[str, int] = {}

    def commit_id(self, repo: str) -> str:
        """Changes whenever a file changes."""
        parts = [f"{path} {hashlib.sha256(data).hexdigest()}" for path, data in sorted(self.repos[repo].items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()

    def corrupt(self, repo: str, path: str) -> None:
        """Flip the last byte of a file; its size stays."""
        data = self.repos[repo][path]
        self.repos[repo][path] = data[:-1] + bytes([data[-1] ^ 1])


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in a listing."""
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if path.endswith(BINARY):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def _parts(path: str) -> list[str]:
    """Owner, name and what follows, of a dataset's or a model's path."""
    inner = path.removeprefix("/api")
    for kind in ("/datasets/", "/models/"):
        inner = inner.removeprefix(kind)
    return inner.strip("/").split("/")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, what: str) -> None:
        self.answer(404, {"error": f"{what} not found"}, X_Error_Code=f"{what}NotFound", X_Error_Message=what)

    def handle_request(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append(f"{self.command} {path}")
        failure = next((status for part, status in hub.fail.items() if part in path), 0)
        if failure:
            self.answer(failure, {"error": "out of service"})
        elif path.startswith("/lfs/"):
            hub.objects[path.removeprefix("/lfs/")] = body
            self.answer(200)
        elif self.command in ("GET", "HEAD"):
            self.read(path, query)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        else:
            self.write(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read(self, path: str, query: dict[str, list[str]]) -> None:
        hub = self.hub
        if path == "/api/datasets":
            author, search = query.get("author", [""])[0], query.get("search", [""])[0]
            names = [name for name in hub.repos if name.startswith(f"{author}/") and search in name]
            return self.answer(200, [{"id": name} for name in names])
        parts = _parts(path)
        repo = "/".join(parts[:2])
        if repo not in hub.repos:
            return self.missing("Repo")
        files, commit = hub.repos[repo], hub.commit_id(repo)
        match parts[2:]:
            case [] | ["revision", _]:
                return self.answer(200, {"id": repo, "sha": commit})
            case ["tree", _]:
                return self.answer(200, [_entry(name, data) for name, data in sorted(files.items())])
            case ["resolve", _, *rest] if "/".join(rest) in files:
                data = files["/".join(rest)]
                digest = (hashlib.sha256 if rest[-1].endswith(BINARY) else hashlib.sha1)(data).hexdigest()
                return self.answer(200, data, ETag=f'"{digest}"', X_Repo_Commit=commit)
        return self.missing("Entry")

    def write(self, path: str, body: bytes) -> None:
        hub = self.hub
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            status = 409 if repo in hub.repos else 200
            hub.repos.setdefault(repo, {})
            return self.answer(status, {"url": f"{hub.url}/{'datasets/' * (asked.get('type') == 'dataset')}{repo}"})
        parts = _parts(path)
        repo = "/".join(parts[:2]).removesuffix(".git")
        if repo not in hub.repos:
            return self.missing("Repo")
        if parts[2] == "preupload":
            modes = [(file["path"], file["path"].endswith(BINARY)) for file in json.loads(body)["files"]]
            files = [{"path": p, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False} for p, lfs in modes]
            return self.answer(200, {"files": files})
        if parts[2] == "info":
            wanted = json.loads(body)["objects"]
            for each in wanted:
                if each["oid"] not in hub.objects:
                    each["actions"] = {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}
            return self.answer(200, {"objects": wanted, "transfer": "basic"})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.repos[repo][value["path"]] = hub.objects[value["oid"]]
        commit = hub.commit_id(repo)
        return self.answer(200, {"commitUrl": f"{hub.url}/datasets/{repo}/commit/{commit}", "commitOid": commit})


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the service on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
