"""A real HTTP server in a thread that plays as much of the Hugging Face Hub as huggingface_hub asks of it for models."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_testtokentesttokentesttokentest"

Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits by branch, tag and id; the files of each by their paths."""

    private: bool = False
    gated: bool = False
    revisions: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, Files] = field(default_factory=lambda: {"0" * 40: {}})

    def at(self, revision: str) -> tuple[str, Files] | None:
        """A revision's id and files."""
        commit = self.revisions.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None

    def commit(self, revision: str, files: Files) -> str:
        """Put files in the place of those of a branch."""
        commit = hashlib.sha1(repr((self.revisions[revision], sorted(files.items()))).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.revisions[revision] = commit
        return commit


class Refusal(Exception):  # noqa: N818
    """An answer other than success."""

    def __init__(self, status: int, code: str = "", body: Any = None) -> None:
        self.status, self.code, self.body = status, code, json.dumps(body or {}).encode()


class HubServer:
    """The server; `asked` are the methods and paths that came, `unknown` those of them that it does not know."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.broken: int | None = None
        """Status with which everything is answered."""
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    # --- what is answered -----------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
        if self.broken is not None:
            raise Refusal(self.broken)
        allowed = headers.get("Authorization") == f"Bearer {TOKEN}"
        if (method, path) == ("POST", "/api/repos/create"):
            return self._create(json.loads(body), allowed)
        if (method, path) == ("POST", "/api/validate-yaml"):
            return _json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/large/(\w+)", path):
            self.large[found[1]] = body
            return _json({})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._repository(found[1], allowed)
            return _json({"objects": [self._upload_of(each) for each in json.loads(body)["objects"]]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree|preupload|commit)/([^/]+)", path):
            repository = self._repository(found[1], allowed)
            if found[2] == "commit" and not allowed:
                raise Refusal(403)
            return getattr(self, f"_{found[2]}")(repository, unquote(found[3]), body, found[1])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            return self._revision(self._repository(found[1], allowed), "main", body, found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(self._repository(found[1], allowed), unquote(found[2]), found[3])
        self.unknown.append(f"{method} {path}")
        raise Refusal(404)

    def _repository(self, name: str, allowed: bool) -> Repository:
        repository = self.repositories.get(name)
        if repository is None or (repository.private and not allowed):
            raise Refusal(404 if allowed else 401, "RepoNotFound")
        if repository.gated:
            raise Refusal(403, "GatedRepo")
        return repository

    def _create(self, asked: Mapping[str, Any], allowed: bool) -> tuple[bytes, dict[str, str]]:
        if not allowed:
            raise Refusal(401)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        made = {"url": f"{self.url}/{name}", "id": name}
        if name in self.repositories:
            raise Refusal(409, body=made)
        self.repositories[name] = Repository(private=asked.get("private", False) or asked.get("visibility") == "private")
        return _json(made)

    def _upload_of(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {**asked, "actions": {"upload": {"href": f"{self.url}/large/{asked['oid']}", "header": {}}}}

    def _revision(self, repository: Repository, revision: str, body: bytes, name: str) -> tuple[bytes, dict[str, str]]:
        commit, files = _at(repository, revision)
        return _json({"id": name, "sha": commit, "private": False, "siblings": [{"rfilename": path} for path in files]})

    def _tree(self, repository: Repository, revision: str, body: bytes, name: str) -> tuple[bytes, dict[str, str]]:
        _, files = _at(repository, revision)
        return _json(
            [{"type": "file", "path": path, "size": len(content), "oid": _oid(content)} for path, content in files.items()]
        )

    def _preupload(self, repository: Repository, revision: str, body: bytes, name: str) -> tuple[bytes, dict[str, str]]:
        _at(repository, revision)
        kinds = [
            (each["path"], "lfs" if each["path"].endswith(".safetensors") else "regular") for each in json.loads(body)["files"]
        ]
        return _json({"files": [{"path": path, "uploadMode": kind, "shouldIgnore": False} for path, kind in kinds]})

    def _commit(self, repository: Repository, revision: str, body: bytes, name: str) -> tuple[bytes, dict[str, str]]:
        files = dict(_at(repository, revision)[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(revision, files)
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}", "hookOutput": ""})

    def _resolve(self, repository: Repository, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        commit, files = _at(repository, revision)
        if path not in files:
            raise Refusal(404, "EntryNotFound")
        return files[path], {"ETag": f'"{_oid(files[path])}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = urlsplit(self.path).path
                server.asked.append(f"{self.command} {path}")
                status, content, headers = 200, b"{}", {}
                try:
                    content, headers = server.answer(self.command, path, body, self.headers)
                except Refusal as refusal:
                    status, content, headers = refusal.status, refusal.body, {"X-Error-Code": refusal.code} if refusal.code else {}
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


def _at(repository: Repository, revision: str) -> tuple[str, Files]:
    found = repository.at(revision)
    if found is None:
        raise Refusal(404, "RevisionNotFound")
    return found


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _json(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {}
