"""Models on the Hugging Face hub, through huggingface_hub with its cache and its offline mode."""

import importlib

from clip_jax.errors import UserError

PREFIX = "hf-hub:"
PATTERNS = ("*.json", "*.safetensors", "merges.txt", "spiece.model", "open_clip_pytorch_model.bin")


def download(source: str) -> str:
    """The local folder of `hf-hub:OWNER/NAME`.

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
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=list(PATTERNS))
    except Exception as e:  # its own errors, requests', OSError: one line for all
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(
            f"{source}: cannot be had ({reason[:200]}); on a machine with network run "
            f"`hf download {name}` and copy the folder, or give its path instead"
        ) from e
