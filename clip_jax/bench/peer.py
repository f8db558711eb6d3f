"""OpenCLIP beside us in one process, where torch is installed."""

import contextlib
import importlib
from typing import Any

_KEPT: list[Any] = []  # a torch Library's definitions live as long as it does


def open_clip() -> Any:
    """The module.

    Raises:
        ImportError: it, torch or torchvision is not installed.
    """
    torch: Any = importlib.import_module("torch")
    # torchvision's C++ library may be missing beside the CPU build; only these names are missed.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(operators)
    return importlib.import_module("open_clip")
