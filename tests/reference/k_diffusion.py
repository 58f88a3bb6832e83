"""k-diffusion's samplers, without the parts of that package that need torchvision and unused solvers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any
from unittest import mock


def _samplers() -> ModuleType:
    spec = importlib.util.find_spec("k_diffusion")
    assert spec
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or [])
    unused: dict[str, Any] = {name: ModuleType(name) for name in ("torchdiffeq", "torchsde", "k_diffusion.utils")}
    unused["torchdiffeq"].odeint = None
    # The samplers use one of its utilities: a number for each image, with axes added to broadcast.
    unused["k_diffusion.utils"].append_dims = lambda x, dimensions: x.reshape(x.shape + (1,) * (dimensions - x.ndim))
    package.utils = unused["k_diffusion.utils"]  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"k_diffusion": package, **unused}):
        return importlib.import_module("k_diffusion.sampling")


sampling: Any = _samplers()
