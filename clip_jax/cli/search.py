"""clip_jax search SOURCE INDEX_DIR (--text=TEXT | --image=PICTURE) [--top=12] [--html=PAGE.html]"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_jax.cli.use import SOURCE, Parser, load_model
from clip_jax.config.options import at_least_one
from clip_jax.errors import DONE, UserError
from clip_jax.files import resolved

if TYPE_CHECKING:
    from clip_jax.inference.search import Hit


def parser() -> Parser:
    """The options."""
    options = Parser("search", "Find the images of `clip_jax embed` nearest to a text or picture.")
    options.add_model(f"{SOURCE}; the one that embedded")
    options.add_argument("index", type=resolved, help="folder that `clip_jax embed` wrote")
    options.add_argument("--text", default="", help="what to look for, in words")
    options.add_argument("--image", default="", help="what to look for, a picture")
    options.add_argument("--top", type=at_least_one, default=12, help="how many to show")
    options.add_argument("--html", default="", help="also write a page with the pictures")
    return options


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    args = parser().parse_args(list(argv))
    if bool(args.text.strip()) == bool(args.image):
        raise UserError("search: give one of --text='a red car' and --image=PICTURE")

    from clip_jax.data.sources import index_dir
    from clip_jax.inference.search import check_model, open_index, search, write_page

    index = open_index(args.index)
    model = load_model(args.source, args.config)
    check_model(args.index, index, model, args.source)
    query = model.embed_images([args.image]) if args.image else model.embed_texts([args.text])
    found = search(args.index, index, query[0], args.top)
    if args.html:
        page = (args.html, args.index, index, found)
        write_page(*page, text=args.text, image=args.image, index_dir=index_dir(args.index))
    if found.num_missing:
        missing = f"{found.num_missing:,} of {index.num_parts:,} parts are not embedded yet"
        print(f"{args.index}: {missing}", file=sys.stderr)
    print(_table(found.hits))
    if args.html:
        print(f"page: {args.html}")
    return DONE


def _table(hits: "Sequence[Hit]") -> str:
    from clip_jax.report.text import one_line

    paths = [one_line(x.path or x.key) for x in hits]
    wide = max(map(len, ["path", *paths]))
    lines = [f"rank  similarity  {'path':{wide}}  caption"]
    for rank, (hit, path) in enumerate(zip(hits, paths, strict=True), 1):
        lines.append(f"{rank:4}  {hit.similarity:10.4f}  {path:{wide}}  {one_line(hit.caption)}")
    return "\n".join(x.rstrip() for x in lines)
