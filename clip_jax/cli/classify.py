"""clip_jax classify SOURCE IMAGES... --labels=cat,dog [--template='a photo of a {}.']"""

import collections
import csv
import json
import sys
from collections.abc import Callable, Sequence

from clip_jax.cli.use import Parser, load_model
from clip_jax.config.options import at_least_one
from clip_jax.errors import DONE, USER, UserError

TEMPLATE = "a photo of a {}."


def parser() -> Parser:
    """The options."""
    options = Parser("classify", "Say which of some names fits each picture.")
    options.add_model()
    options.add_argument("images", nargs="+", help="image files, folders of them, globs")
    options.add_argument("--labels", default="", help="names, comma-separated")
    options.add_argument("--labels_file", default="", help="a file with a name on each line")
    options.add_argument(
        "--template",
        action="append",
        default=[],
        help=f"a prompt with {{}} for the name; may repeat, then averaged; '{TEMPLATE}'",
    )
    options.add_argument("--top", type=at_least_one, default=5, help="names shown a picture")
    options.add_argument("--format", default="table", choices=list(FORMATS), help="of the output")
    return options


def main(argv: Sequence[str]) -> int:
    """Runs the verb. USER if a picture could not be read; the others are printed all the same."""
    args = parser().parse_intermixed_args(list(argv))
    labels = _labels(args.labels, args.labels_file)
    templates = args.template or [TEMPLATE]
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"--template: must hold one {{}} (got '{template}'); '{TEMPLATE}'")

    from clip_jax.data.record import printable
    from clip_jax.data.sources.images import find_images
    from clip_jax.inference.classify import classify_files
    from clip_jax.report.text import one_line

    paths = [path for _, path in find_images(args.images)]
    names = [printable(path) for path in paths]
    model, status = load_model(args.source, args.config), DONE
    write = FORMATS[args.format](names, labels)
    results = classify_files(model, paths, labels, templates)
    for name, result in zip(names, results, strict=True):
        if isinstance(result, UserError):
            print(f"error: {one_line(str(result))}", file=sys.stderr)
            status = USER
            continue
        best = sorted(enumerate(result.tolist()), key=lambda x: (-x[1], x[0]))[: args.top]
        write(name, best)
    return status


def _labels(text: str, path: str) -> list[str]:
    found = text.split(",")
    if path:
        try:
            with open(path, encoding="utf-8-sig") as f:
                found += f.read().splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{path}: cannot be read ({e}); give a text file of names") from e
    labels = [x.strip() for x in found if x.strip()]
    if not labels:
        raise UserError("--labels: no names; give --labels=cat,dog or --labels_file=FILE")
    for label, count in collections.Counter(labels).items():
        if count > 1:
            raise UserError(f"--labels: given {count} times (got '{label}'); name each once")
    return labels


Writer = Callable[[str, list[tuple[int, float]]], None]


def _table(names: list[str], labels: list[str]) -> Writer:
    from clip_jax.report.text import one_line

    names, labels = [one_line(x) for x in names], [one_line(x) for x in labels]
    wide, label_wide = max(map(len, ["image", *names])), max(map(len, ["label", *labels]))
    print(f"{'image':{wide}}  {'label':{label_wide}}  probability")

    def write(name: str, best: list[tuple[int, float]]) -> None:
        name = one_line(name)
        for number, p in best:
            print(f"{name:{wide}}  {labels[number]:{label_wide}}  {100 * p:9.1f} %")
            name = ""

    return write


def _csv(names: list[str], labels: list[str]) -> Writer:
    del names
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["image", "label", "probability"])

    def write(name: str, best: list[tuple[int, float]]) -> None:
        out.writerows((name, labels[number], f"{p:.6g}") for number, p in best)

    return write


def _jsonl(names: list[str], labels: list[str]) -> Writer:
    del names

    def write(name: str, best: list[tuple[int, float]]) -> None:
        shares = {labels[number]: round(p, 8) for number, p in best}
        print(json.dumps({"image": name, "probabilities": shares}, ensure_ascii=False))

    return write


FORMATS = {"table": _table, "csv": _csv, "jsonl": _jsonl}
