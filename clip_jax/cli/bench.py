"""clip_jax bench NAME: measure a part of the program."""

import importlib
from collections.abc import Sequence

from clip_jax.errors import DONE, USER, UserError, near

BENCHES = {
    "tokenizer": "captions per second of the CLIP tokenizer, against open_clip's",
    "step": "training steps: examples per second, memory, compile time; against open_clip's",
    "loss": "memory and time of the losses: gathered, by slices, around a ring, two blocks",
    "plans": "tables of plans: memory and estimated speed of presets on TPUs that are not here",
    "embed": "photographs per second through Model.embed_images, against open_clip's loop",
}


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:10} {text}" for name, text in BENCHES.items()]
        print("\n".join(["usage: clip_jax bench NAME", "", "benchmarks:", *lines]))
        return DONE if argv else USER
    if argv[0] not in BENCHES:
        raise UserError(
            f"bench: no such benchmark (got '{argv[0]}'); known: {', '.join(BENCHES)}"
            f"{near(argv[0], BENCHES)}"
        )
    return importlib.import_module(f"clip_jax.bench.{argv[0]}").main(argv[1:])
