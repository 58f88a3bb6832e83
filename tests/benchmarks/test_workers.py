"""Workers that take turns: their order, the measurements, and the message of a crash."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.workers import Peak, alternate, median_of_ratios, worker
from gm.errors import UserError

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
pytestmark = ON_LINUX


def toys(tmp_path: Path, crash_at: int = 0) -> dict[str, list[str]]:
    events = str(tmp_path / "events")
    return {
        "a": worker("tests.benchmarks.toy_worker", "a", events, "0"),
        "b": worker("tests.benchmarks.toy_worker", "b", events, str(crash_at)),
    }


def events(tmp_path: Path) -> list[str]:
    return (tmp_path / "events").read_text().splitlines()


def test_processes_alternate_after_their_warm_ups(tmp_path: Path) -> None:
    measured = alternate(toys(tmp_path), rounds=3, pieces=1, warm_ups=1, together=True)
    lines = events(tmp_path)
    assert lines[:4] == ["a sets up", "a piece 1", "b sets up", "b piece 1"]
    assert lines[4:10] == [f"{name} piece {number}" for number in (2, 3, 4) for name in "ab"]
    assert sorted(lines[10:]) == ["a ends", "b ends"]
    assert measured["a"].facts == [{"name": "a"}]
    assert measured["a"].seconds == [2.0, 3.0, 4.0]
    assert measured["b"].median == 6.0
    assert median_of_ratios(measured["a"], measured["b"]) == 0.5
    assert 1e6 < measured["a"].peak <= measured["a"].peak_of_process < 1e9


def test_one_process_lives_at_a_time_when_not_together(tmp_path: Path) -> None:
    measured = alternate(toys(tmp_path), rounds=2, pieces=2, warm_ups=1, together=False)
    turn = ["sets up", "piece 1", "piece 2", "piece 3", "ends"]
    assert events(tmp_path) == [f"{name} {what}" for _ in range(2) for name in "ab" for what in turn]
    assert measured["a"].seconds == [2.0, 3.0, 2.0, 3.0]
    assert len(measured["b"].facts) == 2


@pytest.mark.parametrize("together", [True, False])
def test_crash_is_reported_with_the_end_of_the_output(tmp_path: Path, together: bool) -> None:
    with pytest.raises(UserError, match=r"the worker 'b' ended with code 3.*\n(.*\n)*.*the toy is broken"):
        alternate(toys(tmp_path, crash_at=2), rounds=2, pieces=1, warm_ups=1, together=together)


def test_missing_worker_module_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No module named"):
        alternate({"a": worker("benchmarks.nothing")}, rounds=1, pieces=1, warm_ups=0, together=True)


def test_peak_counts_from_the_last_reset() -> None:
    peak = Peak()
    buffer = bytearray(b"\1") * 200_000_000
    before = peak.read()
    del buffer
    peak.reset()
    assert peak.read() < before - 150_000_000
    assert peak.ever() > before - 5_000_000  # Linux counts pages in bundles


def test_results_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    measured = alternate(toys(tmp_path), rounds=1, pieces=1, warm_ups=0, together=True)
    path = tmp_path / "new" / "results.json"
    report.answer(str(path), "Toys", report.sides(measured), {"sides": {n: m.asdict() for n, m in measured.items()}})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Toys"
    assert printed[3].split()[:2] == ["a", "1"]
    assert len({line.index("1" if k == 0 else "2") for k, line in enumerate(printed[3:])}) == 1
    written = json.loads(path.read_text())
    assert written["sides"]["b"]["seconds"] == [2.0]
    assert written["machine"]["cores"] >= 1
