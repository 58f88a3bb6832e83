"""gm/runtime/devices.py: the card of a process, its memory limit and the level of its graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import pytest

from gm.config import RunConfig
from gm.errors import UserError
from gm.runtime import devices, onednn


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return the calls of MindSpore's functions, which stand-ins record: there is no card."""
    recorded: list[tuple[Any, ...]] = []
    for variable in ("OMPI_COMM_WORLD_LOCAL_RANK", "DEVICE_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(devices, "_memory_limit", "")
    monkeypatch.setattr(ms, "set_device", lambda *args: recorded.append(("set_device", *args)))
    monkeypatch.setattr(ms, "set_context", lambda **options: recorded.append(("set_context", options)))
    monkeypatch.setattr(ms.runtime, "set_memory", lambda **sizes: recorded.append(("set_memory", sizes)))
    return recorded


def test_the_cpu_gets_no_card_level_or_limit(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE_ID", "3")
    devices.select("CPU", RunConfig(jit_level="O1", max_device_memory="30GB"))
    assert calls == [("set_device", "CPU")]


def test_graphs_run_kernel_by_kernel_by_default(calls: list) -> None:
    devices.select("Ascend", RunConfig())
    assert calls == [("set_device", "Ascend"), ("set_context", {"jit_config": {"jit_level": "O0"}})]
    devices.select("Ascend", RunConfig(jit_level="O1"))
    assert calls[-1] == ("set_context", {"jit_config": {"jit_level": "O1"}})


@pytest.mark.parametrize(
    ("variables", "card"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "5"}, 5),
        ({"DEVICE_ID": "2"}, 2),  # set by msrun, or by the user
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "DEVICE_ID": "7"}, 1),  # every process of mpirun has the user's DEVICE_ID
        ({"DEVICE_ID": ""}, None),
    ],
)
def test_the_card_is_that_of_the_launcher(
    variables: dict[str, str], card: int | None, calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    devices.select("Ascend", RunConfig())
    assert calls[0] == (("set_device", "Ascend") if card is None else ("set_device", "Ascend", card))


def test_a_card_that_is_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE_ID", "npu:1")
    with pytest.raises(UserError, match=r"DEVICE_ID=npu:1 is not the number of a card"):
        devices.select("Ascend", RunConfig())


@pytest.mark.parametrize(
    ("text", "limit"),
    [("", ""), ("30GB", "30GB"), ("30", "30GB"), ("59 GB", "59GB"), ("3.5gb", "3.5GB"), ("24G", "24GB")],
)
def test_sizes_of_memory(text: str, limit: str) -> None:
    assert devices.memory_limit(text) == limit


@pytest.mark.parametrize("text", ["0GB", "0.00GB", "-3GB", "30MB", "all", "GB", "1e3GB"])
@pytest.mark.parametrize("device", ["CPU", "Ascend"])
def test_another_size_is_refused(text: str, device: str, calls: list) -> None:
    with pytest.raises(UserError, match=rf"--max_device_memory {text} is not a size in gigabytes such as 30GB"):
        devices.select(device, RunConfig(max_device_memory=text))
    assert calls == []


def test_the_memory_limit_is_set_once_a_process(calls: list, caplog: pytest.LogCaptureFixture) -> None:
    """MindSpore raises RuntimeError at the second call."""
    for limit in ("30GB", "30", "20GB"):
        devices.select("Ascend", RunConfig(max_device_memory=limit))
    sizes = [call[1] for call in calls if call[0] == "set_memory"]
    assert sizes == [{"init_size": "2GB", "increase_size": "2GB", "max_size": "30GB"}]
    assert "--max_device_memory 20GB is not used: this process began with 30GB" in caplog.text


def test_the_memory_pool_is_not_larger_than_the_limit(calls: list) -> None:
    devices.select("Ascend", RunConfig(max_device_memory="1.5GB"))
    assert calls[-1] == ("set_memory", {"init_size": "1.5GB", "increase_size": "1.5GB", "max_size": "1.5GB"})


@pytest.mark.parametrize(
    ("device", "options", "messages"),
    [
        ("CPU", {}, []),
        ("CPU", {"jit_level": "O1"}, ["--jit_level O1 has no effect on CPU"]),
        ("Ascend", {"flash_attention": "off"}, []),
        ("CPU", {"max_device_memory": "30GB"}, ["--max_device_memory 30GB has no effect on CPU"]),
        ("Ascend", {"jit_level": "O1", "max_device_memory": "30GB"}, []),
        ("Ascend", {"jit_level": "O1", "ms_mode": 1}, ["--jit_level O1 has no effect in PyNative mode"]),
    ],
)
def test_options_without_effect_are_named(device: str, options: dict, messages: list[str]) -> None:
    assert devices.unused_options(device, RunConfig(**options)) == messages


@pytest.mark.parametrize(
    ("device", "card", "dtype", "off_or_auto", "refusal"),
    [
        ("Ascend", "ascend910b", ms.float16, "auto", ""),
        ("Ascend", "ascend910_93", ms.bfloat16, "auto", ""),
        ("Ascend", "ascend910", ms.float16, "off", "an Ascend 910B or later, and this card is a 910A: use auto"),
        (
            "Ascend",
            "ascend910b",
            ms.float32,
            "off",
            "half precision, and the weights are float32: use auto, or --precision float16",
        ),
        (
            "CPU",
            "",
            ms.float32,
            "off",
            "what is missing here: no C++ compiler (CXX=none); install one, for example Debian's g++; or use auto",
        ),
    ],
)
def test_flash_attention_is_used_where_the_card_has_it(
    device: str, card: str, dtype: Any, off_or_auto: str, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "soc_version", lambda: card)
    monkeypatch.setattr(onednn, "_path", "")
    monkeypatch.setattr(onednn, "find_onednn", Path)
    monkeypatch.setenv("CXX", "none")
    assert devices.flash_attention(device, RunConfig(), dtype) == off_or_auto
    assert devices.flash_attention(device, RunConfig(flash_attention="off"), dtype) == "off"
    on = RunConfig(flash_attention="on")
    if not refusal:
        assert devices.flash_attention(device, on, dtype) == "on"
        return
    with pytest.raises(UserError) as raised:
        devices.flash_attention(device, on, dtype)
    assert str(raised.value) == f"--flash_attention on needs {refusal}"


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "CPU", ms.float32),
        ("auto", "Ascend", ms.float16),
        ("bfloat16", "Ascend", ms.bfloat16),
        ("float32", "Ascend", ms.float32),
        ("float16", "CPU", ms.float16),
    ],
)
def test_weight_dtype_by_device(monkeypatch: pytest.MonkeyPatch, precision: str, device: str, expected: object) -> None:
    monkeypatch.setattr(devices, "soc_version", lambda: "ascend910b")
    assert devices.weight_dtype(precision, device) == expected


def test_bfloat16_on_a_910a_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "soc_version", lambda: "ascend910")
    with pytest.raises(UserError, match="a 910A has no bfloat16; use --precision float16"):
        devices.weight_dtype("bfloat16", "Ascend")
