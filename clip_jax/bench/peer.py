"""OpenCLIP beside us in one process, where torch is installed."""

import contextlib
import functools
import importlib
from typing import Any


def open_clip() -> Any:
    """The module.

    Raises:
        ImportError: it, torch or torchvision is not installed.
    """
    _operators()
    return importlib.import_module("open_clip")


@functools.cache  # the definitions live as long as the object
def _operators() -> Any:
    """The names that torchvision misses beside the CPU build of torch, where its library fails."""
    torch: Any = importlib.import_module("torch")
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators
