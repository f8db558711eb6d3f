"""clip_jax embed SOURCE --data=PATHS --out=DIR [--what=both|image|text] [--part_size=10000]"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_jax.cli.use import Parser, load_model
from clip_jax.config.options import at_least_one
from clip_jax.errors import DONE, UserError, near
from clip_jax.files import resolved

if TYPE_CHECKING:
    from clip_jax.inference.embed import Summary


def parser() -> Parser:
    """The options."""
    options = Parser("embed", "Embed a data set into Parquet files; the same command goes on.")
    options.add_model()
    options.add_argument(
        "--data", action="append", required=True, help="tars ({00..09}, *) or folders; may repeat"
    )
    options.add_argument("--out", type=resolved, required=True, help="folder or URL for the parts")
    options.add_argument(
        "--kind",
        default="",
        help="folder, webdataset, tfds, images or module:function; empty: by its look",
    )
    options.add_argument(
        "--what", default="both", choices=["both", "image", "text"], help="what to embed"
    )
    options.add_argument(
        "--batch_size", type=at_least_one, default=0, help="pairs at once; else that of the run"
    )
    options.add_argument("--part_size", type=at_least_one, default=10_000, help="rows a file")
    options.add_argument("--split", default="train", help="of a TFDS data set")
    options.add_argument("--image_field", default="", help="as config.data.train.image_field")
    options.add_argument("--caption_field", default="", help="as config.data.train.caption_field")
    return options


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    args = parser().parse_args(list(argv))

    from clip_jax.config.schema import SplitConfig
    from clip_jax.data.sources import index_dir
    from clip_jax.data.sources.located import KINDS, guess_kind, open_located
    from clip_jax.inference.embed import embed
    from clip_jax.inference.index import Index, model_digest, require_pyarrow, software
    from clip_jax.metrics.writers import LiveLine

    require_pyarrow()
    kind = args.kind or guess_kind(args.data, captions=args.what != "image")
    if kind not in KINDS and ":" not in kind:
        known = ", ".join(KINDS)
        raise UserError(f"--kind: unknown (got '{kind}'); use {known}{near(kind, KINDS)}")
    if kind == "images" and args.what != "image":
        raise UserError(
            f"{args.data[0]}: images without captions; give --what=image, or add NAME.txt beside "
            "NAME.jpg, a captions.csv, or sub-folders named after classes"
        )
    cfg = SplitConfig(
        kind=kind,
        paths=tuple(args.data),
        split=args.split,
        image_field=args.image_field,
        caption_field=args.caption_field,
    )
    data = open_located(cfg, index_dir=index_dir(args.out))
    model = load_model(args.source, args.config, args.batch_size)
    index = Index(
        source=args.source,
        model=model_digest(model),
        embed_dim=model.config.model.embed_dim,
        what=args.what,
        part_size=args.part_size,
        num_records=len(data),
        fingerprint=data.fingerprint,
        data=cfg,
        software=software(),
    )
    live = LiveLine(len(data), sys.stderr, unit="record")
    try:
        done = embed(model, data, index, args.out, live)
    finally:
        live.close()
    print(_told(args.out, done))
    return DONE


def _told(out: str, done: "Summary") -> str:
    parts = "part" if done.num_parts == 1 else "parts"
    lines = [f"{out}: {done.num_rows:,} rows in {done.num_parts:,} {parts}"]
    if done.stood:
        lines[0] += f", {done.stood:,} of them from before"
    if done.errors:
        lines.append(f"{done.errors.total():,} rows without an embedding that was asked for:")
        lines += [f"  {count:,} x {reason}" for reason, count in done.errors.most_common(5)]
    return "\n".join(lines)
