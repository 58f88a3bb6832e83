"""The device of this process: which card, how much of its memory, and how graphs run on it."""

from __future__ import annotations

import logging
import os
import re
from typing import TypeAlias

import mindspore as ms

from gm.config import RunConfig
from gm.errors import UserError
from gm.runtime import onednn

log = logging.getLogger("gm")

DType: TypeAlias = ms.Type  # of `ms.float32` and its like

ASCEND_910A = "ascend910"  # as MindSpore names its chip; later ones are "ascend910b" and "ascend910_93"
# Where a launcher, or the user, names the card of a process. MindSpore itself takes card 0 in every process of mpirun,
# and ignores DEVICE_ID, which msrun sets, once `set_device` is called with another one.
_CARD_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "DEVICE_ID")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?(?:GB?)?", re.IGNORECASE)
_POOL_GB = 2.0  # MindSpore's memory pool begins with this size
_memory_limit = ""  # MindSpore accepts one limit in a process


def select(name: str, run: RunConfig) -> None:
    """Set the device `name`, "Ascend" or "CPU", and what `run` chooses on it; before any tensor is created.

    Raises UserError for a card or a memory limit that is not a number.
    """
    limit = memory_limit(run.max_device_memory)
    if name != "Ascend":
        ms.set_device(name)
        return
    card = card_number()
    if card is None:
        ms.set_device(name)  # msrun's processes then agree on their cards; a single process takes card 0
    else:
        ms.set_device(name, card)
    # Without a level MindSpore takes O0, but on Ascend 910 O2 (`MsContext::GetJitLevel`): CANN's graph engine, which
    # cannot be compiled without a card. `nn.Cell.set_jit_config` has the same effect, but for one Cell.
    ms.set_context(jit_config={"jit_level": run.jit_level})
    if limit:
        _limit_memory(limit)


def card_number() -> int | None:
    """Return the number of this process's card among those of the machine; None where nothing names it."""
    for variable in _CARD_VARIABLES:
        value = os.environ.get(variable)
        if value:
            if not value.isdecimal():
                raise UserError(f"{variable}={value} is not the number of a card; set it to 0, 1, …, or unset it")
            return int(value)
    return None


def memory_limit(text: str) -> str:
    """Return --max_device_memory as MindSpore writes it, such as "30GB"; empty for no limit."""
    if not text:
        return ""
    match = _MEMORY.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise UserError(f"--max_device_memory {text} is not a size in gigabytes such as 30GB or 3.5GB")
    return f"{float(match[1]):g}GB"


def weight_dtype(precision: str, name: str) -> DType:
    """Return the dtype of the frozen weights on the device `name`; UserError where it lacks it.

    On the CPU bfloat16 needs the operators of `onednn`; without them it is float32, which a line of the log says.
    """
    if precision == "auto":
        precision = "float16" if name == "Ascend" else "float32"
    if precision == "bfloat16" and name == "CPU":
        try:
            onednn.load_bfloat16()
        except onednn.Unavailable as reason:
            log.warning("--precision bfloat16 is float32 here: %s", reason)
            precision = "float32"
    if precision == "bfloat16" and name == "Ascend" and soc_version() == ASCEND_910A:
        raise UserError("a 910A has no bfloat16; use --precision float16")
    return {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}[precision]


def flash_attention(name: str, run: RunConfig, dtype: DType) -> str:
    """Return "off", "auto" or "on": whether networks in `dtype` use flash attention on the device `name`.

    Raises UserError where --flash_attention on cannot hold. On the CPU it needs the operators of `onednn`. Ascend's
    kernel exists on Atlas A2 and later cards, in half precision (documentation of `ops.flash_attention_score`).
    """
    reason = ""
    if name != "Ascend":
        missing = _missing_operators()  # normalisations use them, too
        reason = missing if run.flash_attention != "off" else ""
    elif soc_version() == ASCEND_910A:
        reason = "an Ascend 910B or later, and this card is a 910A: use auto"
    elif dtype == ms.float32:
        reason = "half precision, and the weights are float32: use auto, or --precision float16"
    if reason and run.flash_attention == "on":
        raise UserError(f"--flash_attention on needs {reason}")
    return "off" if reason else run.flash_attention


def _missing_operators() -> str:
    """Load the operators of `onednn`; return the requirements that are missing here, empty if they are loaded."""
    try:
        onednn.load()
    except onednn.Unavailable as missing:
        return f"what is missing here: {missing}; or use auto"
    return ""


def unused_options(name: str, run: RunConfig) -> list[str]:
    """Return a sentence for each option of `run` that has no effect on the device `name`."""
    messages = []
    if run.jit_level != RunConfig.jit_level and (name != "Ascend" or run.ms_mode == 1):
        where = "in PyNative mode" if name == "Ascend" else f"on {name}"
        messages.append(f"--jit_level {run.jit_level} has no effect {where}")
    if run.max_device_memory and name != "Ascend":  # tried: the CPU backend takes 5 GB under a limit of 1 GB
        messages.append(f"--max_device_memory {run.max_device_memory} has no effect on {name}")
    return messages


def soc_version() -> str:
    """Return the name of the card's chip, such as "ascend910b"."""
    from mindspore._c_expression import MSContext

    return str(MSContext.get_instance().get_ascend_soc_version())


def _limit_memory(limit: str) -> None:
    global _memory_limit
    if not _memory_limit:
        pool = f"{min(_POOL_GB, float(limit.removesuffix('GB'))):g}GB"
        ms.runtime.set_memory(init_size=pool, increase_size=pool, max_size=limit)
        _memory_limit = limit
    elif limit != _memory_limit:
        log.warning("--max_device_memory %s is not used: this process began with %s", limit, _memory_limit)
