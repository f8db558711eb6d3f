"""PyTorch files: state dicts, training checkpoints of OpenCLIP, TorchScript archives of OpenAI.

Needs torch, which unpickles tensors and plain containers only (`weights_only`). A TorchScript
archive may run operators of its own as it loads: open only one whose origin you trust.
Costs: mapped into memory if written by PyTorch 1.6 or later; older ones and TorchScript archives
are in memory whole.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError
from clip_jax.interop.tensors import (
    AGAIN,
    Tensors,
    check_file,
    kind,
    missing,
    not_a,
    shown,
    zip_names,
)

# torch's names, which are numpy's and those of ml_dtypes; the second through which both see the
# bits of a dtype that numpy lacks.
_PLAIN = (
    *("float64", "float32", "float16", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)
_BITS = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
_DTYPES = {
    **{name: np.dtype(name) for name in _PLAIN},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _BITS},
}


@dataclasses.dataclass
class _File:
    path: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    metadata: dict[str, str]
    _tensors: dict[str, Any]

    def read(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise missing(self.path, name, self.shapes)
        tensor, dtype = self._tensors[name].detach(), self.dtypes[name]
        if dtype.name in _BITS:
            tensor = tensor.view(getattr(_torch(self.path), _BITS[dtype.name]))
        return np.array(tensor.numpy(), order="C").view(dtype)

    def close(self) -> None:
        self._tensors = {}


def open_torch(path: str) -> Tensors:
    """Opens a .bin, .pt or .pth file.

    Of a training checkpoint only what stands under `state_dict` is seen. `module.`, which data
    parallel training puts before every name, is taken off.

    Raises:
        UserError: torch is missing, or not such a file, or damaged, or with other things than
            tensors in it.
    """
    check_file(path)
    if kind(path) != "torch":
        raise not_a(path, "torch")
    torch = _torch(path)
    tensors = state_dict(path, _load(torch, path), torch.is_tensor)
    dtypes = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            form = "without data" if tensor.is_meta else f"{dtype} {tensor.layout}"
            raise UserError(
                f"{path}: tensor {shown(name)} is {form}; save it again as a dense tensor of one "
                f"of {', '.join(_DTYPES)}"
            )
        dtypes[name] = _DTYPES[dtype]
    shapes = {name: tuple(int(x) for x in tensor.shape) for name, tensor in tensors.items()}
    return _File(path, shapes, dtypes, metadata={}, _tensors=tensors)


def _torch(path: str) -> Any:
    """The package. Raises UserError if it is not installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]  (the tests run without it)
    except ImportError as e:
        raise UserError(
            f"{path}: a PyTorch file needs torch to be read; pip install torch, or convert the "
            "file to .safetensors where torch is"
        ) from e
    return torch


def _load(torch: Any, path: str) -> object:
    """What the file holds. Raises UserError."""
    members = zip_names(path)  # empty for a file of PyTorch before 1.6
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated helps nobody here
            if is_torchscript(members):
                return torch.jit.load(path, map_location="cpu").state_dict()
            return torch.load(path, map_location="cpu", weights_only=True, mmap=bool(members))
    except Exception as e:  # torch raises RuntimeError, EOFError, KeyError, UnpicklingError, ...
        raise UserError(f"{path}: {why_not_loaded(e)}") from e


def is_torchscript(members: list[str]) -> bool:
    """Whether the members of a zip file are those of a TorchScript archive."""
    inside = [name.partition("/")[2] for name in members]
    return any(name == "constants.pkl" or name.startswith("code/") for name in inside)


def why_not_loaded(e: Exception) -> str:
    """One short line about an error of torch.load, whose own run over many."""
    if type(e).__name__ == "UnpicklingError" and "GLOBAL" in str(e):
        found = re.search(r"GLOBAL (\S+)", str(e))
        what = f" ({found[1][:80]})" if found else ""
        return (
            f"holds Python objects other than tensors{what}, which may run code and are not read; "
            "where the file comes from, save its state_dict alone"
        )
    why = (str(e).splitlines() or [type(e).__name__])[0][:120]
    return f"cannot be read by torch ({why}); {AGAIN}"


def state_dict(path: str, loaded: object, is_tensor: Callable[[object], bool]) -> dict[str, Any]:
    """The named tensors in what torch.load returned.

    Numbers, texts and the like beside the tensors are left out; tensors deeper down are refused,
    since nobody can tell whether they belong to the model.

    Raises:
        UserError: no named tensors at the top or under `state_dict`.
    """
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path}: holds one {type(loaded).__name__}, not named tensors; save a state_dict"
        )
    tensors = {name: value for name, value in loaded.items() if is_tensor(value)}
    if not tensors:
        raise UserError(
            f"{path}: has no tensors at the top or under 'state_dict' (got "
            f"{shown(list(loaded))}); save the state_dict of the model alone"
        )
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: name {shown(name)} is not a text; save a state_dict")
        if name not in tensors and _holds_tensors(value, is_tensor):
            raise UserError(
                f"{path}: {shown(name)} is a {type(value).__name__} of tensors among tensors; save "
                "the state_dict of the model alone"
            )
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _holds_tensors(value: object, is_tensor: Callable[[object], bool]) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensors(x, is_tensor) for x in value)
    return is_tensor(value)
