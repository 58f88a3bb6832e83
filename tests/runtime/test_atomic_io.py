from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gm.errors import UserError
from gm.runtime import atomic_io


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def run(code: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.ckpt"
    with atomic_io.atomic_write(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.ckpt"]


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, exception: type[BaseException]) -> None:
    target = tmp_path / "a.ckpt"
    target.write_text("old")
    with pytest.raises(exception), atomic_io.atomic_write(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise exception
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.ckpt"]


def test_the_file_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    with atomic_io.atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert done == [str(temporary), "replace", str(tmp_path)]


def test_two_writers_in_one_process_do_not_share_a_file(tmp_path: Path) -> None:
    with atomic_io.atomic_write(tmp_path / "a") as one, atomic_io.atomic_write(tmp_path / "a") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one"  # the outer block ended last
    assert names(tmp_path) == ["a"]


def test_a_link_keeps_pointing_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    with atomic_io.atomic_write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_folder_or_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match="is not a file"), atomic_io.atomic_write(path):
            pass


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"folder {tmp_path}/none does not exist; create it")):  # noqa: SIM117
        with atomic_io.atomic_write(tmp_path / "none" / "a"):
            pass


def test_an_unwritable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # the tests may run as root, for whom every folder is writable
    with pytest.raises(UserError, match="Permission denied; choose a folder"), atomic_io.atomic_write(tmp_path / "a"):
        pass


@pytest.mark.parametrize(("number", "reason"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota")])
def test_a_full_disk_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=reason), atomic_io.atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == []


def test_another_system_error_is_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_io.atomic_write(tmp_path / "a"):
        (tmp_path / "other").read_text()


@pytest.mark.e2e
def test_a_file_larger_than_the_limit_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    code = """
        import resource, sys
        from gm.config import cli
        from gm.runtime import atomic_io
        def main():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            with atomic_io.atomic_write(sys.argv[1]) as temporary, temporary.open("wb") as file:
                file.write(bytes(10000))
        cli.run(main)
    """
    process = run(code, str(target))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "cannot write" in error
    assert "limit" in error
    assert error.count("\n") == 1
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a"]


WRITER = """
    import sys, time
    from gm.runtime import atomic_io
    with atomic_io.atomic_write(sys.argv[1]) as temporary, temporary.open("wb") as file:
        file.write(bytes(1000))
        file.flush()
        print("half", flush=True)
        time.sleep(60)
"""


@pytest.mark.e2e
def test_a_killed_writer_leaves_no_target_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "a.ckpt"
    process = run(WRITER, str(target))
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names(tmp_path) == [f".a.ckpt.{process.pid}.0.tmp"]
    (tmp_path / ".b.ckpt.1.0.tmp").touch()  # of another target
    with atomic_io.atomic_write(target) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == [".b.ckpt.1.0.tmp", "a.ckpt"]


@pytest.mark.e2e
def test_the_temporary_file_of_a_running_writer_is_not_removed(tmp_path: Path) -> None:
    target = tmp_path / "a"
    process = run(WRITER, str(target))
    assert process.stdout.readline() == "half\n"
    try:
        with atomic_io.atomic_write(target) as temporary:
            temporary.write_text("new")
        assert f".a.{process.pid}.0.tmp" in names(tmp_path)
    finally:
        process.kill()
        process.communicate()


def test_check_writable_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_io.check_writable(tmp_path / "a" / "b", "--save_path")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"cannot write to --save_path .*/file/b: .*/file is not a folder; choose another"
    ):
        atomic_io.check_writable(tmp_path / "file" / "b", "--save_path")
    monkeypatch.setattr(atomic_io.os, "access", lambda *a: False)  # everything is writable for root
    with pytest.raises(UserError, match=r"is not writable; choose another"):
        atomic_io.check_writable(tmp_path / "a", "--save_path")


def test_a_link_or_a_copy_replaces_the_target_and_never_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, link = (tmp_path / name for name in ("source", "target", "link"))
    source.write_text("new")
    link.symlink_to(source)
    target.write_text("old")
    for _ in range(2):  # also where it is a link already
        atomic_io.link_or_copy(link, target)
        assert target.samefile(source)
        assert not target.is_symlink()

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    target.unlink()
    atomic_io.link_or_copy(link, target)
    assert not target.samefile(source)
    assert (target.read_text(), source.read_text()) == ("new", "new")
    assert names(tmp_path) == ["link", "source", "target"]
