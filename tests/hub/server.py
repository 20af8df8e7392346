"""A small Hub on loopback: what huggingface_hub and datasets ask for, and faults on request.

A repository is a plain folder, `root/models/owner/name` or `root/datasets/owner/name`. Commit ids
and hashes are computed from what is in it: write a file there and `main` has moved; what was served
under an earlier commit stays. Files of weights, tables and pictures are LFS files, as on the Hub.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".ckpt", ".pt", ".parquet", ".png", ".jpg", ".arrow")
PAGE = 50  # entries of a tree in one answer
TOKEN = "fresh"  # of an account that has accepted every term
STRANGER = "stranger"  # of an account that has not
LONGEST_S = 120.0  # an answer that never comes ends with the server, or after this
API = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?$")
RESOLVE = re.compile(r"^/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


class Refused(Exception):
    """An answer that is none: status, X-Error-Code, and words."""

    def __init__(self, status: int, code: str = "", words: str = "", **headers: str) -> None:
        super().__init__(words or code)
        self.status, self.headers = status, dict(headers)
        self.headers |= {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Error-Message": words or code} if code or words else {}


class Hub:
    """The server, its repositories, and what it was asked; `url` is what HF_ENDPOINT takes."""

    def __init__(self, root: Path) -> None:
        self.root, self.gated, self.private = Path(root), set[str](), set[str]()
        self.asked: list[str] = []
        self.faults: list[tuple[re.Pattern, str, int]] = []  # pattern, kind, times left
        self.commits: dict[tuple[str, str], dict[str, tuple[Path, str, int]]] = {}
        self.stopped, self.lock, self._hashes = threading.Event(), threading.Lock(), {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.other = f"http://localhost:{self.server.server_port}"  # where large files lie
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def folder(self, repo: str, kind: str = "models") -> Path:
        """The folder of a repository, made where it is not there yet."""
        path = self.root / kind / repo
        path.mkdir(parents=True, exist_ok=True)
        return path

    def fault(self, pattern: str, kind: str, times: int = 1) -> None:
        """For the next `times` requests whose "METHOD /path" has `pattern`: a status, or one of
        drop (the connection, in the middle of a body), flip (a bit of the body), hang."""
        self.faults.append((re.compile(pattern), kind, times))

    def due(self, line: str) -> str | None:
        """The fault that this request meets, counted down."""
        with self.lock:
            for place, (pattern, kind, times) in enumerate(self.faults):
                if times and pattern.search(line):
                    self.faults[place] = (pattern, kind, times - 1)
                    return kind
        return None

    def commit(self, repo: str, kind: str = "models") -> str:
        """The id of what the folder holds now; its files are kept under it."""
        with self.lock:
            folder, files = self.root / kind / repo, {}
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                files[path.relative_to(folder).as_posix()] = (path, *self._hash(path))
            lines = "\n".join(f"{name} {digest}" for name, (_, digest, _) in files.items())
            found = hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest()
            if (repo, found) not in self.commits:
                kept = {name: (self._keep(path, digest), digest, size)
                        for name, (path, digest, size) in files.items()}  # fmt: skip
                self.commits[repo, found] = kept
            return found

    def _hash(self, path: Path) -> tuple[str, int]:
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if key not in self._hashes:
            with path.open("rb") as file:
                if path.suffix in LFS:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                else:
                    data = b"blob %d\0" % status.st_size + file.read()
                    digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            self._hashes[key] = (digest, status.st_size)
        return self._hashes[key]

    def _keep(self, path: Path, digest: str) -> Path:
        kept = self.root / "blobs" / digest
        kept.parent.mkdir(exist_ok=True)
        if not kept.exists() and path.stat().st_size > 2**26:
            os.link(path, kept)  # true-size weights are written once
        elif not kept.exists():
            shutil.copyfile(path, kept)
        return kept

    def files(self, repo: str, kind: str, revision: str) -> tuple[str, dict]:
        """The commit that a revision is, and its files as (path, hash, size) by name."""
        now = self.commit(repo, kind)
        commit = now if revision in ("main", "refs/convert/parquet") else revision
        if revision == "refs/convert/parquet" or (repo, commit) not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, self.commits[repo, commit]

    def check(self, repo: str, kind: str, token: str | None, content: bool) -> None:
        """Refuse a repository as the Hub does; `content` asks for more than its description."""
        if token not in (None, TOKEN, STRANGER):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        absent = not (self.root / kind / repo).is_dir()
        if absent or (repo in self.private and token != TOKEN):
            raise Refused(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if content and repo in self.gated and token != TOKEN:
            words = f"Access to {kind[:-1]} {repo} is restricted"
            raise Refused(401 if token is None else 403, "GatedRepo", words)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        line = f"{self.command} {path}"
        self.hub.asked.append(line)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        self.due = self.hub.due(line)
        try:
            if self.due == "hang":
                self.hub.stopped.wait(LONGEST_S)
                raise Refused(504)
            if self.due and self.due.isdigit():
                raise Refused(int(self.due), **({"Retry-After": "0"} if self.due == "429" else {}))
            self._route(path, query, body)
        except Refused as refused:
            self._send(refused.status, b"{}", refused.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, path: str, query: dict, body: bytes) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if path == "/api/whoami-v2":
            if token != TOKEN:
                raise Refused(401, "", "Invalid username or password.")
            self._json({"type": "user", "name": "tester", "orgs": [], "auth": {}})
        elif path == "/api/repos/create":
            self._create(json.loads(body), token)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.startswith("/lfs/"):
            self._lfs(path, body)
        elif found := re.match(r"^/([^/]+/[^/]+)\.git/info/lfs/objects/batch$", path):
            self._batch(found[1], json.loads(body))
        elif found := RESOLVE.match(path):
            kind = "datasets" if found[1] else "models"
            self.hub.check(found[2], kind, token, content=True)
            self._resolve(kind, *found.groups()[1:])
        elif found := API.match(path):
            self._api(*found.groups(default=""), query, body, token)
        else:
            raise Refused(404)

    def _api(self, kind: str, repo: str, rest: str, query: dict, body: bytes, token) -> None:
        verb, _, tail = rest.partition("/")
        self.hub.check(repo, kind, token, content=verb in ("auth-check", "tree", "paths-info"))
        if verb == "auth-check":
            self._json({})
        elif verb in ("", "revision"):
            self._info(kind, repo, tail or "main", "blobs" in query)
        elif verb == "tree":
            revision, _, below = tail.partition("/")
            self._tree(kind, repo, revision, below, query)
        elif verb == "paths-info":
            asked = (
                json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            )
            commit, files = self.hub.files(repo, kind, tail)
            self._json([_entry(name, files[name], commit) for name in asked if name in files])
        elif verb == "preupload":
            self._json({"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(LFS) else "regular"}
                for f in json.loads(body)["files"]]})  # fmt: skip
        elif verb == "commit":
            self._commit(kind, repo, body)
        else:
            raise Refused(404)

    def _info(self, kind: str, repo: str, revision: str, blobs: bool) -> None:
        commit, files = self.hub.files(repo, kind, revision)
        siblings = []
        for name, (_, digest, size) in files.items():
            row = {"rfilename": name}
            if blobs:
                row |= {"size": size, "blobId": digest[:40]}
            if blobs and name.endswith(LFS):
                row["lfs"] = {"sha256": digest, "size": size, "pointerSize": 130}
            siblings.append(row)
        gated = "manual" if repo in self.hub.gated else False
        self._json({"_id": "0" * 24, "id": repo, "modelId": repo, "sha": commit, "gated": gated,
                    "private": repo in self.hub.private, "disabled": False, "downloads": 0,
                    "likes": 0, "tags": [], "siblings": siblings,
                    "lastModified": "2024-01-01T00:00:00.000Z",
                    "createdAt": "2024-01-01T00:00:00.000Z"})  # fmt: skip

    def _tree(self, kind: str, repo: str, revision: str, below: str, query: dict) -> None:
        commit, files = self.hub.files(repo, kind, revision)
        start = int(query.get("cursor", ["0"])[0])
        inside = f"{below}/" if below else ""
        names = [n for n in files if n.startswith(inside)]
        rows = [_entry(n, files[n], commit) for n in names]
        if query.get("recursive", ["false"])[0].lower() != "true":
            rows = [r for r in rows if "/" not in r["path"][len(inside) :]]
            folders = dict.fromkeys(inside + n[len(inside) :].partition("/")[0] for n in names
                                    if "/" in n[len(inside) :])  # fmt: skip
            rows += [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
        if below and not rows:
            raise Refused(404, "EntryNotFound", f"{below} does not exist")
        more = {}
        if start + PAGE < len(rows):
            again = f"{self.hub.url}{urlsplit(self.path).path}?recursive=True&cursor={start + PAGE}"
            more = {"Link": f'<{again}>; rel="next"'}
        self._json(rows[start : start + PAGE], more)

    def _resolve(self, kind: str, repo: str, revision: str, name: str) -> None:
        commit, files = self.hub.files(repo, kind, revision)
        if name not in files:
            raise Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        path, digest, size = files[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if name.endswith(LFS):
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size),
                        "Location": f"{self.hub.other}/lfs/{digest}"}  # fmt: skip
            self._send(302, b"", headers)
        else:
            self._file(path, headers)

    def _lfs(self, path: str, body: bytes) -> None:
        kept = self.hub.root / "blobs" / Path(path).name
        if self.command == "PUT":
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(body)
            self._send(200, b"", {"ETag": f'"{kept.name}"'})
        elif self.command == "POST":
            self._json({})
        else:
            self._file(kept, {"ETag": f'"{kept.name}"', "Accept-Ranges": "bytes"})

    def _file(self, path: Path, headers: dict) -> None:
        size = path.stat().st_size
        span = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or "")
        start = int(span[1]) if span else 0
        end = min(int(span[2]) if span and span[2] else size - 1, size - 1)
        if span:
            headers |= {"Content-Range": f"bytes {start}-{end}/{size}"}
        if self.command == "HEAD":
            return self._send(200, None, headers, size)
        data = path.read_bytes()[start : end + 1]
        if self.due == "flip":
            place = len(data) // 2
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        self._send(206 if span else 200, data, headers)

    def _create(self, asked: dict, token: str | None) -> None:
        if token != TOKEN:
            raise Refused(401, "", "Invalid username or password.")
        kind = f"{asked.get('type') or 'model'}s"
        repo = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        if (self.hub.root / kind / repo).is_dir():
            raise Refused(409, "", "You already created this repo")
        self.hub.folder(repo, kind)
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})

    def _batch(self, repo: str, asked: dict) -> None:
        rows = [{"oid": o["oid"], "size": o["size"], "authenticated": True, "actions": {
            "upload": {"href": f"{self.hub.url}/lfs/{o['oid']}", "header": {}}}}
            for o in asked["objects"]]  # fmt: skip
        self._json({"transfer": "basic", "objects": rows})

    def _commit(self, kind: str, repo: str, body: bytes) -> None:
        folder = self.hub.folder(repo, kind)
        for line in body.decode().splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] not in ("file", "lfsFile"):
                continue
            target = folder / value["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if row["key"] == "file":
                target.write_bytes(base64.b64decode(value["content"]))
            else:
                shutil.copyfile(self.hub.root / "blobs" / value["oid"], target)
        commit = self.hub.commit(repo, kind)
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _json(self, value: object, headers: dict | None = None) -> None:
        self._send(200, json.dumps(value).encode(),
                   {"Content-Type": "application/json"} | (headers or {}))  # fmt: skip

    def _send(self, status: int, data: bytes | None, headers: dict, size: int = 0) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size if data is None else len(data)))
        self.end_headers()
        if data and self.command != "HEAD":
            if self.due == "drop":
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(data)


def _entry(name: str, file: tuple[Path, str, int], commit: str) -> dict:
    _, digest, size = file
    row = {"type": "file", "path": name, "oid": digest[:40], "size": size}
    if name.endswith(LFS):
        row["lfs"] = {"oid": digest, "size": size, "pointerSize": 130}
    return row


if __name__ == "__main__":  # by hand: python -m hub.server FOLDER
    import sys

    served = Hub(Path(sys.argv[1]))
    print(served.url, flush=True)
    while True:
        time.sleep(3600)
