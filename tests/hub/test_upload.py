"""tools/push_to_hub.py --push_to_hub, with the Hub's own client against a server that answers its requests."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gm.embeddings import io as embedding_io
from gm.embeddings.embedding import Embedding
from gm.errors import UserError
from gm.hub import upload

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Hub:
    """Repositories by name, with the files of each; names that end in `large` are uploaded through Git LFS."""

    address: str
    large: tuple[str, ...] = ()
    stored: dict[str, bytes] = field(default_factory=dict)
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, dict[str, Any]]:
        path = path.split("?")[0]
        if method == "PUT":
            self.stored[path.removeprefix("/stored/")] = body
            return 200, {}
        lines = [json.loads(line) for line in body.splitlines()] if body else []
        if path.endswith("/info/lfs/objects/batch"):
            wanted = [each["oid"] for each in lines[0]["objects"]]
            places = [{"upload": {"href": f"{self.address}/stored/{oid}"}} for oid in wanted]
            return 200, {"objects": [{"oid": o, "size": 1, "actions": p} for o, p in zip(wanted, places, strict=True)]}
        if not path.startswith(("/api/repos/", "/api/models/", "/api/validate-yaml")):
            return 404, {"error": "not here"}
        if token != "Bearer hf_right":
            return 401, {"error": "who are you?"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            known = name in self.repositories
            self.repositories.setdefault(name, {})
            if lines[0].get("visibility") == "private":
                self.private.add(name)
            return 409 if known else 200, {"url": f"{self.address}/{name}"}
        _, _, _, user, title, what, _ = path.split("/")
        if what == "preupload":
            names = [each["path"] for each in lines[0]["files"]]
            modes = ["lfs" if name.endswith(self.large) else "regular" for name in names]
            files = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in zip(names, modes, strict=True)]
            return 200, {"files": files}
        held = self.repositories[f"{user}/{title}"]
        for line in lines:
            if line["key"] == "file":
                held[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            if line["key"] == "lfsFile":
                held[line["value"]["path"]] = self.stored[line["value"]["oid"]]
        return 200, {"commitUrl": f"{self.address}/{user}/{title}/commit/1", "commitOid": "1" * 40, "success": True}


@pytest.fixture
def served() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def answered(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization") or ""
            status, found = here.answer(self.command, self.path, token, body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answered

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        here = Hub(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield here
        server.shutdown()


def push(
    folder: Path, endpoint: str, *flags: str, token: str = "hf_right", lfs: bool = False
) -> subprocess.CompletedProcess[str]:
    """Publish an embedding from another process: the client reads its environment when it is imported."""
    vectors = {"clip_l": np.ones((1, 16), np.float32), "clip_g": np.ones((1, 24), np.float32)}
    embedding_io.save(Embedding("<cat-toy>", vectors), folder / "a_ti.ckpt")
    command = [sys.executable, "tools/push_to_hub.py", "--source", str(folder / "a_ti.ckpt")]
    command += ["--target", str(folder / "out"), "--push_to_hub", "ann/cat-toy", *flags]
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HOME": str(folder / "home")}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": str(int(lfs))}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.e2e
@pytest.mark.parametrize("lfs", [False, True], ids=["small", "large"])
def test_the_files_of_the_folder_are_pushed_and_no_others(served: Hub, tmp_path: Path, lfs: bool) -> None:
    served.large = (".safetensors",) if lfs else ()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    process = push(tmp_path, served.address, lfs=lfs)
    assert process.returncode == 0, process.stderr
    assert len(served.stored) == (3 if lfs else 0)
    assert f"pushed to {served.address}/ann/cat-toy" in process.stdout
    pushed = served.repositories["ann/cat-toy"]
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written.pop("notes.txt") == b"mine"
    assert pushed == written
    assert served.private == set()
    assert "load_textual_inversion('ann/cat-toy', weight_name=" in pushed["README.md"].decode()
    (tmp_path / "got").mkdir()
    for name, content in pushed.items():
        (tmp_path / "got" / name).write_bytes(content)
    assert embedding_io.load(tmp_path / "got").placeholder_token == "<cat-toy>"


@pytest.mark.e2e
def test_an_existing_repository_is_updated(served: Hub, tmp_path: Path) -> None:
    assert push(tmp_path, served.address, "--private").returncode == 0
    assert served.private == {"ann/cat-toy"}
    process = push(tmp_path, served.address, "--license", "mit", "--overwrite")
    assert process.returncode == 0, process.stderr
    assert b"license: mit" in served.repositories["ann/cat-toy"]["README.md"]


@pytest.mark.e2e
def test_a_hub_that_refuses_or_does_not_answer_is_reported(served: Hub, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for endpoint in (served.address, nobody):
            process = push(tmp_path, endpoint, "--overwrite", token="hf_wrong")
            assert process.returncode == 2
            (line,) = process.stderr.splitlines()
            assert "error: the Hub did not accept ann/cat-toy: " in line
            assert "check the network and the login" in line
            assert "hf_wrong" not in process.stdout + process.stderr
            assert (tmp_path / "out" / "README.md").is_file()
    assert served.repositories == {}


def test_pushing_needs_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="--push_to_hub needs the Hub's client: pip install huggingface_hub"):
        upload.check_repo("ann/cat-toy")
