"""Opens a weight file of any known format."""

from collections.abc import Callable

from clip_jax.errors import UserError
from clip_jax.interop.npz import open_npz
from clip_jax.interop.safetensors import open_safetensors, open_sharded
from clip_jax.interop.tensors import Tensors, check_file
from clip_jax.interop.torch_file import open_torch

FORMATS: dict[str, Callable[[str], Tensors]] = {
    ".safetensors": open_safetensors,
    ".index.json": open_sharded,
    ".npz": open_npz,
    ".bin": open_torch,
    ".pt": open_torch,
    ".pth": open_torch,
}


def open_tensors(path: str) -> Tensors:
    """Opens a file by the end of its name; the reader then checks that the content fits.

    Raises:
        UserError: no such file, an end that no reader has, or not what the name says.
    """
    check_file(path)
    for suffix, reader in FORMATS.items():
        if path.lower().endswith(suffix):
            return reader(path)
    raise UserError(
        f"{path}: unknown kind of weight file; the name must end in one of {', '.join(FORMATS)}"
    )
