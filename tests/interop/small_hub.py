"""A hub of one repository: what huggingface_hub asks a real one, answered from a folder. Run by test_hub_names.py."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO, SHA = "someone/saes", "0123456789abcdef0123456789abcdef01234567"
root = Path(sys.argv[1])
files = {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
fetched: list[str] = []


class Hub(BaseHTTPRequestHandler):
    """Repository, revision, tree and files."""

    def answer(self, send: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPO}"):
            if path.rpartition("/revision/")[2] not in (path, "main", SHA):
                self.send_response(404)
                self.send_header("X-Error-Code", "RevisionNotFound")
                self.end_headers()
                return
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            body: object = {"id": REPO, "sha": SHA, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            if "/tree/" in path:
                body = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
            self.reply(json.dumps(body).encode(), "application/json", {}, send)
            return
        name = path.partition("/resolve/")[2].partition("/")[2]
        if not path.startswith(f"/{REPO}/resolve/") or name not in files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if path.startswith(f"/{REPO}/") else "RepoNotFound")
            self.end_headers()
            return
        if send:
            fetched.append(name)
        head = {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"', "X-Repo-Commit": SHA}
        self.reply(files[name], "application/octet-stream", head, send)

    def reply(self, body: bytes, kind: str, head: dict[str, str], send: bool) -> None:
        self.send_response(200)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **head}.items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def log_message(self, format: str, *args: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": sys.argv[2]}
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
os.environ.pop("HF_HUB_OFFLINE", None)

import monosem as ms  # noqa: E402
from monosem.errors import MonosemError  # noqa: E402


def told(name: str, revision: str | None = None) -> dict[str, object]:
    """What comes of a name: the metadata, or the error."""
    fetched.clear()
    try:
        known = ms.load_sae(name, revision=revision).metadata
    except MonosemError as error:
        return {"error": str(error)}
    return {**known.model_dump(exclude_none=True), "fetched": sorted(fetched)}


asked = json.loads(sys.argv[3])
found = [told(*one) for one in asked]
server.shutdown()
server.server_close()
print(json.dumps({"online": found, "offline": [told(*one) for one in asked]}))
