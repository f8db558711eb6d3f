"""OpenCLIP beside us, in this process or one of its own, where torch is installed."""

import contextlib
import functools
import importlib
import importlib.util
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from clip_jax.errors import UserError


def open_clip() -> Any:
    """The module.

    Raises:
        ImportError: it, torch or torchvision is not installed.
    """
    _operators()
    return importlib.import_module("open_clip")


@functools.cache  # the definitions live as long as the object
def _operators() -> Any:
    """The names torchvision asks for beside the CPU build of torch, where its library fails."""
    torch: Any = importlib.import_module("torch")
    spec = importlib.util.find_spec("torchvision")
    if spec and spec.submodule_search_locations:
        with contextlib.suppress(OSError):
            torch.ops.load_library(os.path.join(spec.submodule_search_locations[0], "_C.so"))
            return None
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


def apart(make: Callable[..., Callable[..., Any]], *args: Any) -> Callable[..., Any]:
    """The function that make(*args) gives, in a process of its own.

    Its threads and memory are then apart from ours, as in a run of its own.

    Args:
        make: a function of a module.
        args: what can be pickled.

    Raises:
        ImportError: `make` raised it.
        UserError: anything else went wrong over there.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there, make, args), daemon=True).start()
    there.close()  # so that its end is seen here

    def received() -> Any:
        answer: tuple[str, Any] = ("error", "its process ended")
        with contextlib.suppress(EOFError):
            answer = here.recv()
        kind, value = answer
        if kind == "error":
            raise UserError(f"bench: the peer failed ({value})")
        if kind == "missing":
            raise ImportError(value)
        return value

    def run(*given: Any) -> Any:
        here.send(given)
        return received()

    received()
    return run


def _serve(pipe: Any, make: Callable[..., Callable[..., Any]], args: tuple[Any, ...]) -> None:
    try:
        run = make(*args)
        pipe.send(("ready", 0.0))
        while True:
            pipe.send(("done", run(*pipe.recv())))
    except EOFError:  # the other process ended
        return
    except ImportError as e:
        pipe.send(("missing", str(e)))
    except Exception as e:
        pipe.send(("error", " ".join(f"{type(e).__name__}: {e}".split())[:300]))
