"""Captions per second of the CLIP tokenizer, beside open_clip's own where it can be loaded.

One process, one thread, the two by turns in every round, so that a busy machine hits both.
The captions are made up from a fixed seed: 5 to 14 words (some with capitals, commas, digits or
`'s`) drawn with the weights 1/rank from 4,000 words, the commonest of the merges (mostly English).
Costs: about 5 s a round with the peer, 0.3 s without.
"""

import importlib.util
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax.config.options import Options, at_least_one
from clip_jax.config.schema import TokenizerConfig
from clip_jax.errors import DONE
from clip_jax.tokenizers import bpe

CONTEXT, NUM_WORDS = 77, 4000


def make_captions(num: int, merges: bytes) -> list[str]:
    """Returns `num` captions, the same for the same arguments."""
    ends = [line.replace(" ", "") for line in merges.decode().split("\n")[1:-1]]
    words = [w[:-4] for w in ends if w.endswith("</w>") and w[:-4].isascii() and w[:-4].isalpha()]
    words = [w for w in words if len(w) > 2][:NUM_WORDS]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    rng = random.Random(0)
    return [_caption(rng.choices(words, weights, k=rng.randint(5, 14)), rng) for _ in range(num)]


def _caption(words: list[str], rng: random.Random) -> str:
    i = rng.randrange(len(words))
    words[i] += rng.choice(["", "", ",", "'s", f" {rng.randint(1, 99)}", "-" + words[0]])
    return " ".join(words).capitalize() + rng.choice(["", ".", ".", "!"])


def load_peer() -> Callable[[list[str]], Any] | str:
    """Returns open_clip's tokenizer, from its file alone, or why it cannot be had."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        return "open_clip_torch is not installed"
    path = os.path.join(spec.submodule_search_locations[0], "tokenizer.py")
    file_spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    if file_spec is None or file_spec.loader is None:
        return f"no {path}"
    module = importlib.util.module_from_spec(file_spec)
    try:
        file_spec.loader.exec_module(module)
    except ImportError as e:
        return str(e)
    return module.SimpleTokenizer(context_length=CONTEXT)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _line(name: str, num: int, seconds: Sequence[float]) -> str:
    rates = sorted(num / s for s in seconds)
    middle = statistics.median(rates)
    return f"{name:<10} {middle:>9,.0f} captions/s   ({rates[0]:,.0f} to {rates[-1]:,.0f})"


def main(argv: list[str]) -> int:
    """Runs `clip_jax bench tokenizer`. Returns the exit status."""
    parser = Options("bench tokenizer", (__doc__ or "").split("\n")[0])
    parser.add_argument("--captions", type=at_least_one, default=40_000, help="captions a round")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="timed rounds")
    args = parser.parse_args(argv)

    ours = bpe.build(TokenizerConfig(kind="clip_bpe"), vocab_size=bpe.VOCAB_SIZE)
    texts = make_captions(args.captions, ours.to_bytes())
    num_words = len({word for text in texts for word in text.lower().split()})
    length = statistics.mean(map(len, texts))
    print(f"{len(texts):,} captions, {length:.0f} characters on average, {num_words:,} chunks")
    print(_line("ours, cold", len(texts), [_seconds(lambda: ours(texts, CONTEXT))]))

    peer = load_peer()
    if isinstance(peer, str):
        print(f"open_clip not measured: {peer}")
    else:
        equal = (ours(texts, CONTEXT) == np.asarray(peer(texts))).all(axis=1).sum()
        print(f"{equal:,} of {len(texts):,} rows are equal")
    seconds: dict[str, list[float]] = {"ours": [], "open_clip": []}
    for _ in range(args.rounds):
        seconds["ours"].append(_seconds(lambda: ours(texts, CONTEXT)))
        if not isinstance(peer, str):
            seconds["open_clip"].append(_seconds(lambda: peer(texts)))
    for name, values in seconds.items():
        if values:
            print(_line(name, len(texts), values))
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
