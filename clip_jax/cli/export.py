"""clip_jax export SOURCE --to=FORMAT --out=DIR [--config=NAME] [--dtype=float16]"""

from collections.abc import Sequence

from clip_jax.cli.use import Parser, load_model
from clip_jax.errors import DONE


def parser() -> Parser:
    """The options of the verb."""
    out = Parser("export", "Write a model in the files of another program.")
    out.add_model()
    out.add_argument("--to", required=True, help="clip_jax, open_clip, hf, big_vision or diffusers")
    out.add_argument("--out", required=True, help="a folder that does not exist yet")
    out.add_argument("--ema", action="store_true", help="the moving average that a run kept")
    out.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16")
    return out


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    args = parser().parse_args(list(argv))

    from clip_jax.inference.export import check, export, run_scores

    check(args.to, args.out, args.dtype)  # before the weights are read
    model = load_model(args.source, args.config, ema=args.ema)
    export(model, args.to, args.out, dtype=args.dtype, scores=run_scores(args.source, args.ema))
    print(f"wrote {args.out}")
    return DONE
