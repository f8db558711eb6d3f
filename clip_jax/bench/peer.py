"""OpenCLIP beside us, in this process or one of its own, where torch is installed."""

import contextlib
import functools
import importlib
import multiprocessing
from collections.abc import Callable
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


def apart(make: Callable[..., Callable[[], float]], *args: Any) -> Callable[[], float]:
    """The function that make(*args) gives, in a process of its own.

    In one process torch's threads and memory cost ours a third of its speed, on a CPU.

    Args:
        make: a function of a module.
        args: what can be pickled.

    Raises:
        ImportError: `make` raised it.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there, make, args), daemon=True).start()
    there.close()  # so that its end is seen here
    if missing := here.recv():
        raise ImportError(missing)

    def run() -> float:
        here.send(None)
        return here.recv()

    return run


def _serve(pipe: Any, make: Callable[..., Callable[[], float]], args: tuple[Any, ...]) -> None:
    try:
        run = make(*args)
    except ImportError as e:
        pipe.send(str(e))
        return
    pipe.send("")
    with contextlib.suppress(EOFError):  # the other process ended
        while True:
            pipe.recv()
            pipe.send(run())
