"""Models of the Hub: found in the local cache without its client, or fetched from a server on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gm.config import RunConfig, cli, hub_models
from gm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAME, COMMIT = "me/tiny-model", "a" * 40
INDEX = json.dumps({"unet": ["diffusers", "U"], "vae": ["diffusers", "A"], "text_encoder": [None, None]})
FILES = {
    "model_index.json": INDEX,
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors": "unet",
    "unet/diffusion_pytorch_model.fp16.safetensors": "half",
    "unet/diffusion_pytorch_model.bin": "pickled",
    "vae/diffusion_pytorch_model.safetensors": "vae",
    "safety_checker/model.safetensors": "large",
    "model.ckpt": "single",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for variable in ("HUGGINGFACE_HUB_CACHE", "HF_HOME", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # an import of it fails


def fill(cache: Path, names: list[str], reference: str = "main") -> Path:
    """Write a model into the cache in the Hub's layout: files are links to blobs; return its snapshot."""
    folder = cache / "models--me--tiny-model"
    snapshot = folder / "snapshots" / COMMIT
    for number, name in enumerate(names):
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / str(number)).write_text(FILES[name])
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(folder / "blobs" / str(number))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / reference).write_text(COMMIT)
    return snapshot


WHOLE = [name for name in FILES if name != "model.ckpt"]


@pytest.mark.usefixtures("no_client")
def test_a_model_in_the_cache_is_found_without_the_client(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gm")
    snapshot = fill(cache, WHOLE)
    assert hub_models.locate(RunConfig(weight=NAME)) == str(snapshot)
    assert caplog.messages == [f"{NAME}: {snapshot} in the Hugging Face cache"]
    assert hub_models.locate(RunConfig(weight=NAME, revision=COMMIT)) == str(snapshot)
    config = cli.parse("", ("run",), ["--weight", NAME])
    assert config.run.weight == str(snapshot)


@pytest.mark.usefixtures("no_client")
def test_a_single_file_in_the_cache_is_found(cache: Path) -> None:
    assert hub_models.find_cached(NAME) is None
    assert hub_models.find_cached(NAME, "main") is None
    snapshot = fill(cache, ["model.ckpt"])
    assert hub_models.locate(RunConfig(weight=NAME)) == str(snapshot / "model.ckpt")


@pytest.mark.usefixtures("no_client")
@pytest.mark.parametrize("missing", ["unet", "vae"])
def test_an_incomplete_or_missing_model_needs_the_client(cache: Path, missing: str) -> None:
    fill(cache, [name for name in WHOLE if not name.startswith(missing)])
    for run in (RunConfig(weight=NAME), RunConfig(weight=NAME, revision="other"), RunConfig(weight="me/other")):
        with pytest.raises(UserError) as caught:
            hub_models.locate(run)
        assert str(caught.value) == (
            f"--weight {run.weight} is neither a file or folder nor in the Hugging Face cache {cache}; pip install "
            "huggingface_hub fetches it, or give a folder or a file, or fetch it elsewhere: "
            f"hf download {run.weight} --local-dir <folder>"
        )


@pytest.mark.usefixtures("no_client")
def test_a_link_without_its_file_is_missing(cache: Path) -> None:
    snapshot = fill(cache, WHOLE)
    (snapshot / "vae/diffusion_pytorch_model.safetensors").resolve().unlink()
    assert hub_models.find_cached(NAME) is None


@pytest.mark.parametrize("weight", ["model.ckpt", "models/model.ckpt", "a/b/c", "/a/b", "./a", "a/b.safetensors", "x/"])
def test_paths_are_not_names_of_the_hub(weight: str) -> None:
    assert not hub_models.is_name(weight)
    assert hub_models.locate(RunConfig(weight=weight)) == weight


def test_a_path_in_a_folder_that_is_there_is_not_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_models.is_name("models/sdxl")
    (tmp_path / "models").mkdir()
    assert not hub_models.is_name("models/sdxl")


def test_the_cache_is_that_of_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", "/home/me/hf")
    assert hub_models.cache_folder() == tmp_path / "hub"
    monkeypatch.delenv("HF_HUB_CACHE")
    assert hub_models.cache_folder() == Path("/home/me/hf/hub")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert hub_models.cache_folder() == Path("/c/huggingface/hub")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert hub_models.cache_folder() == Path("/home/me/.cache/huggingface/hub")


@pytest.mark.parametrize(
    ("variant", "unet"),
    [(None, "diffusion_pytorch_model.safetensors"), ("fp16", "diffusion_pytorch_model.fp16.safetensors")],
)
def test_only_the_files_that_are_needed_are_fetched(variant: str | None, unet: str) -> None:
    patterns = hub_models._patterns(list(FILES), ["unet", "vae"], variant)
    assert sorted(patterns) == [
        "model_index.json",
        "unet/config.json",
        f"unet/{unet}",
        "vae/diffusion_pytorch_model.safetensors",
    ]


@pytest.fixture
def served() -> Iterator[tuple[str, list[str]]]:
    """Return the address of a Hub with one model, and the list of the files that were fetched."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            siblings = [{"rfilename": name} for name in FILES]
            if path.startswith(f"/api/models/{NAME}/tree/"):
                entries = [{"type": "file", "path": n, "size": len(c), "oid": "1" * 40} for n, c in FILES.items()]
                self.answer(200, json.dumps(entries).encode(), "application/json")
            elif path.startswith(f"/api/models/{NAME}"):
                model = {"id": NAME, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
                self.answer(200, json.dumps(model).encode(), "application/json")
            elif path.startswith(f"/{NAME}/resolve/"):
                name = path.split("/", 5)[5]
                if self.command == "GET":
                    fetched.append(name)
                self.answer(200, FILES[name].encode(), "application/octet-stream", f'"{hash(name) & 0xFFFF}"')
            else:
                self.answer(404, b"{}", "application/json")

        do_HEAD = do_GET

        def answer(self, status: int, content: bytes, kind: str, etag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if etag:
                self.send_header("ETag", etag)
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", fetched
    server.shutdown()
    server.server_close()


@pytest.mark.e2e
def test_a_model_is_fetched_from_the_endpoint_of_the_environment(
    served: tuple[str, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, because the client reads its variables when it is imported."""
    address, fetched = served
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    code = (
        "import sys; from gm.config import RunConfig, hub_models as h; print(h.locate(RunConfig(weight=sys.argv[1])))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run([*command, NAME], capture_output=True, text=True, cwd=ROOT)
    snapshot = cache / "models--me--tiny-model" / "snapshots" / COMMIT
    assert result.stdout.strip() == str(snapshot), result.stderr[-2000:]
    names = {"model_index.json", "unet/config.json"}
    names |= {f"{network}/diffusion_pytorch_model.safetensors" for network in ("unet", "vae")}
    assert set(fetched) == names
    fetched.clear()
    assert subprocess.run([*command, NAME], capture_output=True, text=True, cwd=ROOT).stdout.strip() == str(snapshot)
    assert fetched == []
    failed = subprocess.run([*command, "me/other"], capture_output=True, text=True, cwd=ROOT)
    assert "UserError: --weight me/other cannot be fetched (" in failed.stderr


@pytest.mark.usefixtures("no_client")
def test_a_model_that_a_config_names_is_found_when_it_is_loaded(cache: Path) -> None:
    from gm import api

    snapshot = fill(cache, WHOLE)
    with pytest.raises(UserError, match=str(snapshot)):  # of files that hold no weights
        api.load("configs/training/tiny_textual_inversion.yaml", run={"weight": NAME, "device_target": "CPU"})


@pytest.mark.usefixtures("no_client")
def test_a_model_of_the_hub_chooses_its_config_in_the_api(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gm import api

    snapshot = fill(cache, WHOLE)
    chosen = {"model": {"schedule": {"prediction": "v_prediction"}}}
    monkeypatch.setattr("gm.checkpoints.config_choice.config_for", lambda weight: (f"{weight}.yaml", chosen))
    options = {"run": {"weight": NAME, "ms_mode": 1}, "model": {"schedule": {"timesteps": 5}}}
    path, sections = api._chosen_config(options)
    assert path == f"{snapshot}.yaml"
    assert (sections["run"]["weight"], sections["run"]["ms_mode"]) == (str(snapshot), 1)
    assert sections["model"]["schedule"] == {"prediction": "v_prediction", "timesteps": 5}
