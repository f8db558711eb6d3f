"""clip_jax export SOURCE --to=FORMAT --out=DIR [--config=NAME] [--start=WEIGHTS --share=0.5]"""

from collections.abc import Sequence

from clip_jax.cli.use import Parser, load_model
from clip_jax.errors import DONE, UserError
from clip_jax.files import resolved


def parser() -> Parser:
    """The options of the verb."""
    out = Parser("export", "Write a model in the files of another program.")
    out.add_model()
    out.add_argument("--to", required=True, help="clip_jax, open_clip, hf, big_vision or diffusers")
    out.add_argument("--out", type=resolved, required=True, help="a folder that does not exist yet")
    out.add_argument("--ema", action="store_true", help="the moving average that a run kept")
    out.add_argument("--start", default="", help="weights that a fine-tuning began with, to mix in")
    out.add_argument("--share", type=float, default=-1.0, help="of the end, 0..1, with --start")
    out.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16")
    return out


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    args = parser().parse_args(list(argv))

    from clip_jax.inference.export import check, export, run_scores
    from clip_jax.inference.interpolate import interpolate
    from clip_jax.inference.load import load
    from clip_jax.interop.read import is_foreign

    check(args.to, args.out, args.dtype)  # before the weights are read
    if bool(args.start) != (args.share >= 0):
        here, other = ("--start", "--share=0.5") if args.start else ("--share", "--start=WEIGHTS")
        raise UserError(f"{here}: needs {other} beside it")
    model = load_model(args.source, args.config, ema=args.ema)
    scores = run_scores(args.source, args.ema)
    if args.start:
        config = model.config.model if is_foreign(args.start) else None
        model, scores = interpolate(load(args.start, config=config), model, args.share), ""
    export(model, args.to, args.out, dtype=args.dtype, scores=scores)
    print(f"wrote {args.out}")
    return DONE
