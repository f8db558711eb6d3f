"""Embedding photographs: Model.embed_images against OpenCLIP's own loop, decoding included.

    clip_jax bench embed [--images=512] [--model=ViT-B-32] [--rounds=3]

Both take turns on the same JPEG files with the same random weights; without torch only ours is
measured. What limits it is told by two more figures: the tower alone, and decoding alone.
"""

import contextlib
import importlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.bench import peer
from clip_jax.config.options import Options, at_least_one
from clip_jax.errors import DONE
from clip_jax.inference.api import Model
from clip_jax.inference.export import export
from clip_jax.inference.load import load

PEER_BATCH = 64


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark and prints its table."""
    parser = Options("bench embed", (__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=at_least_one, default=512)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--rounds", type=at_least_one, default=3)
    args = parser.parse_args(list(argv))
    photos = [_photo(i) for i in range(args.images)]
    model = load(config=args.model, init="random")
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: model.embed_images(photos)}
    with contextlib.suppress(ImportError):
        runs["open_clip"] = _peer(model, photos)
    pixels = [model.preprocess(p) for p in photos]
    runs["ours, tower alone"] = lambda: model.embed_images(pixels)
    runs["ours, decoding alone"] = lambda: [model.preprocess(p) for p in photos]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    first = {name: run() for name, run in runs.items()}  # compiles, warms up
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(f"{args.images} JPEGs of 640 x 480 pixels, {args.model}, medians of {args.rounds}")
    for name, values in seconds.items():
        middle = args.images / statistics.median(values)
        low, high = args.images / max(values), args.images / min(values)
        print(f"{name:22} {middle:8.1f} images/s   ({low:.1f} to {high:.1f})")
    if "open_clip" in runs:
        ratio = statistics.median(seconds["open_clip"]) / statistics.median(seconds["ours"])
        apart = np.abs(first["ours"] - first["open_clip"]).max()
        print(f"ours / open_clip: {ratio:.2f}; embeddings differ by at most {apart:.1e}")
    else:
        print("open_clip not measured: it, torch or torchvision is not installed")
    return DONE


def _photo(seed: int) -> bytes:
    """A JPEG with the detail of a photograph: coloured noise at three scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((480, 640, 3), np.float32)
    for rows, columns, weight in ((6, 8, 0.6), (48, 64, 0.3), (240, 320, 0.1)):
        noise = Image.fromarray(rng.integers(0, 256, (rows, columns, 3), np.uint8))
        total += weight * np.asarray(noise.resize((640, 480), Image.Resampling.BICUBIC))
    out = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(out, "jpeg", quality=90)
    return out.getvalue()


def _peer(model: Model, photos: Sequence[bytes]) -> Callable[[], np.ndarray]:
    """OpenCLIP's loop over the same weights: transform, stack, encode_image."""
    torch: Any = importlib.import_module("torch")
    open_clip = peer.open_clip()
    with tempfile.TemporaryDirectory() as folder:
        export(model, "open_clip", f"{folder}/out")
        theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}/out")
    theirs.eval()

    def run() -> np.ndarray:
        out = []
        with torch.no_grad():
            for i in range(0, len(photos), PEER_BATCH):
                part = [Image.open(io.BytesIO(p)) for p in photos[i : i + PEER_BATCH]]
                batch = torch.stack([transform(x) for x in part])
                out.append(theirs.encode_image(batch, normalize=True).numpy())
        return np.concatenate(out)

    return run
