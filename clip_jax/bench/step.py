"""Training steps: examples and FLOPs per second, memory, compile time.

    clip_jax bench step --models=ViT-B-32 --batch_size=32 [--config.model.dtype=bfloat16]
        [--peer=open_clip]

The step is that of training (towers, loss, AdamW, metrics) on random pixels and ids. The peer is
OpenCLIP's model, loss and torch's AdamW, by turns with ours; on a GPU with torch.compile and the
settings of OpenCLIP's main (TF32, cuDNN's benchmark), with autocast where the dtype is bfloat16.
A timed step is one of NUM_STEPS in a row, the last of which is waited for.
"""

import importlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from clip_jax.bench import peer
from clip_jax.config.chips import peak_flops
from clip_jax.config.load import load
from clip_jax.config.options import Options, at_least_one
from clip_jax.config.schema import Config
from clip_jax.data.feed import put
from clip_jax.errors import DONE, UserError
from clip_jax.planner import analytic
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import compiler, program
from clip_jax.train.state import init_state

NUM_STEPS = 10  # in a row, so that none waits for the host's read of a loss; on a CPU 1


def config(model: str, batch_size: int, overrides: Sequence[str]) -> Config:
    """The recipe `clip` for a preset; no file is read."""
    own = (f"--config.batch_size={batch_size}", "--config.data.train.paths=unused")
    return load(f"clip:{model}", (*own, *overrides))


def arrays(cfg: Config) -> dict[str, np.ndarray]:
    """A random batch as the pipeline would make it; the last id of a caption is end-of-text."""
    rng, b, k = np.random.default_rng(0), cfg.batch_size, len(cfg.data.negatives)

    def captions(*shape: int) -> np.ndarray:
        text = cfg.model.text
        ids = rng.integers(2, text.vocab_size - 2, (*shape, text.context)).astype(np.int32)
        ids[..., -1] = text.eos_id
        return ids

    return {
        "text": captions(b),
        **({"negative": captions(b, k)} if k else {}),
        "image": rng.integers(0, 256, (b, *cfg.model.image.shape()), np.uint8),
        "index": np.stack([np.zeros(b), np.arange(b)], 1).astype(np.uint32),
        "group": np.arange(b, dtype=np.int32),
    }


def ours(cfg: Config) -> tuple[Callable[[int], Any], list[str]]:
    """A function that makes n steps and waits for them, and what is known of the program."""
    mesh = make_mesh(cfg.mesh)
    prog = program.build(cfg, mesh)
    start = time.perf_counter()
    execute = prog.compile()
    seconds = time.perf_counter() - start
    with jax.set_mesh(mesh):
        state = init_state(prog.init, prog.abstract, cfg.seed)
    batch = put(arrays(cfg), mesh)
    held = [state]  # donated by each step

    def run(n: int) -> float:
        for _ in range(n - 1):
            held[0], _ = execute(held[0], batch)
        held[0], metrics = execute(held[0], batch)
        return float(metrics["loss"])

    return run, [f"compiled in {seconds:.1f} s", program.memory_line(execute)]


def theirs(cfg: Config) -> Callable[[int], Any]:
    """The same step by OpenCLIP in torch, on the GPU if there is one.

    Raises:
        ImportError: torch or open_clip is not installed.
    """
    torch: Any = importlib.import_module("torch")
    open_clip = peer.open_clip()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_clip.create_model(cfg.name, device=device, output_dict=True)
    loss = open_clip.ClipLoss()
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    optim = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
    forward = torch.compile(model) if device == "cuda" else model
    batch = arrays(cfg)
    image = torch.randn(len(batch["image"]), 3, *batch["image"].shape[1:3], device=device)
    text = torch.from_numpy(batch["text"]).long().to(device)
    half = cfg.model.dtype == "bfloat16"

    def step() -> Any:
        optim.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            out = forward(image, text)
            value = loss(out["image_features"], out["text_features"], out["logit_scale"])
        value.backward()
        optim.step()
        return value.detach()

    def run(n: int) -> float:
        for _ in range(n - 1):
            step()
        return float(step())

    return run


def main(argv: Sequence[str]) -> int:
    """Runs `clip_jax bench step`. Returns the exit status."""
    parser = Options("bench step", (__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default="ViT-B-32", help="presets, with commas")
    parser.add_argument("--batch_size", type=at_least_one, default=32)
    parser.add_argument("--turns", type=at_least_one, default=2, help="of each, with four timings")
    parser.add_argument("--peer", default="", help="open_clip, by turns, in a process of its own")
    args, overrides = parser.parse_with_fields(argv)
    if args.peer not in ("", "open_clip"):
        raise UserError(f"--peer: only open_clip is known (got '{args.peer}')")
    compiler.one_step_at_a_time()  # as `clip_jax train`
    if args.peer:  # room on the card for both
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    for name in args.models.split(","):
        cfg = config(name, args.batch_size, overrides)
        run, facts = ours(cfg)
        runs = {"ours": run}
        if args.peer:
            try:
                runs["open_clip"] = peer.apart(theirs, cfg)
            except ImportError as e:
                print(f"open_clip not measured: {e}")
        table(cfg, runs, args.turns, facts)
    return DONE


def table(cfg: Config, runs: dict[str, Callable[[int], Any]], turns: int, facts: list[str]) -> None:
    """Times all by turns and prints a line for each.

    The first steps of a turn are not timed: who stood still while the other ran may have to fetch
    its memory from the system again, which a training run, that never stands still, has not.
    """
    device = jax.devices()[0]
    n = 1 if device.platform == "cpu" else NUM_STEPS
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(1)  # warms up
    for _ in range(turns):
        for name, run in runs.items():
            run(2)
            for _ in range(4):
                start = time.perf_counter()
                run(n)
                seconds[name].append((time.perf_counter() - start) / n)
    total = analytic.model_flops(cfg)
    devices = {"ours": make_mesh(cfg.mesh).size}
    print(
        f"{cfg.name}, batch {cfg.batch_size}, {cfg.model.dtype}, remat {cfg.model.remat}, "
        f"attention {cfg.model.attention}, "
        f"{jax.device_count()} x {device.device_kind}: {total / 1e12:.2f} TFLOP a step; "
        + "; ".join(facts)
    )
    for name, values in seconds.items():
        middle = statistics.median(values)
        peak = devices.get(name, 1) * peak_flops(device.device_kind)
        mfu = f", {100 * total / middle / peak:.1f} % of the bfloat16 peak" if peak else ""
        print(
            f"  {name:10} {middle:8.4g} s a step ({min(values):.4g} to {max(values):.4g}), "
            f"{cfg.batch_size / middle:,.1f} examples/s, {total / middle / 1e9:,.0f} GFLOP/s{mfu}"
        )
    if "open_clip" in seconds:
        ratio = statistics.median(seconds["open_clip"]) / statistics.median(seconds["ours"])
        print(f"  ours / open_clip: {ratio:.2f}")
