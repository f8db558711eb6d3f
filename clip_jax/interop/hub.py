"""Models on the Hugging Face hub, through huggingface_hub with its cache and its offline mode."""

import contextlib
import importlib
from collections.abc import Iterable

from clip_jax.errors import UserError

PREFIX = "hf-hub:"
PATTERNS = ("*.json", "*.safetensors", "merges.txt", "spiece.model", "*pytorch_model.bin")
PARTS = "model.safetensors.index.json"  # names the files of weights in several parts


def download(source: str, weights: Iterable[str]) -> str:
    """The local folder of `hf-hub:OWNER/NAME`, with one set of weights.

    Args:
        source: the model.
        weights: files of weights that will do, the best first; repositories often hold several.

    Raises:
        UserError: huggingface_hub is not installed, or the model is neither there nor in the cache.
    """
    name = source.removeprefix(PREFIX)
    try:
        huggingface_hub = importlib.import_module("huggingface_hub")
    except ImportError as e:
        raise UserError(
            f"{source}: needs huggingface_hub; pip install 'clip-jax-pretrain[hf]'"
        ) from e
    ignored: list[str] = []
    with contextlib.suppress(Exception):  # without network the cache decides
        ignored = spare(huggingface_hub.HfApi().list_repo_files(name), weights)
    try:
        return huggingface_hub.snapshot_download(
            name, allow_patterns=list(PATTERNS), ignore_patterns=ignored
        )
    except Exception as e:  # its own errors, requests', OSError: one line for all
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(
            f"{source}: cannot be had ({reason[:200]}); on a machine with network run "
            f"`hf download {name}` and copy the folder, or give its path instead"
        ) from e


def spare(names: Iterable[str], weights: Iterable[str]) -> list[str]:
    """The files of weights among `names` that the first of `weights` makes superfluous."""
    names = list(names)
    first = next((w for w in weights if w in names), None)
    if first is None:
        return []
    files = [n for n in names if n.endswith((".safetensors", ".bin"))]
    if first == PARTS:
        return [n for n in files if not n.startswith("model-")]
    return [n for n in files if n != first]
