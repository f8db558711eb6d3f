"""clip_jax export SOURCE --to=FORMAT --out=DIR"""

import argparse
from collections.abc import Sequence

from clip_jax.errors import DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clip_jax export", description="Write a model in the files of another program."
    )
    parser.add_argument("source", help="run, Hugging Face or OpenCLIP folder, hf-hub:NAME, or file")
    parser.add_argument(
        "--to", required=True, help="clip_jax, open_clip, hf, big_vision or diffusers"
    )
    parser.add_argument("--out", required=True, help="a folder that does not exist yet")
    parser.add_argument(
        "--config", default=None, help="name of the model, where the source has none"
    )
    parser.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    args = _parser().parse_args(list(argv))

    from clip_jax.inference.export import export, run_scores
    from clip_jax.inference.load import load

    model = load(args.source, config=args.config)
    export(model, args.to, args.out, dtype=args.dtype, scores=run_scores(args.source))
    print(f"wrote {args.out}")
    return DONE
