"""clip_jax eval RUN [--tasks=a,b] [--floor NAME=VALUE] [--paths=TEST_DATA]"""

import dataclasses
from collections.abc import Collection, Sequence

from clip_jax.config.options import Options
from clip_jax.errors import CHECK_FAILED, DONE, UserError, near
from clip_jax.files import resolved


def _parser() -> Options:
    parser = Options("eval", "Evaluate a run.")
    parser.add_argument("run", type=resolved, help="workdir of the run")
    parser.add_argument("--tasks", default="", help="names, comma-separated; all of the run's")
    parser.add_argument(
        "--floor",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="exit with 3 when a score, such as zeroshot/top1=0.75, is below; may be repeated",
    )
    parser.add_argument(
        "--paths", action="append", default=[], help="other test data; may be repeated"
    )
    parser.add_argument("--ema", action="store_true", help="of the moving average that it kept")
    parser.add_argument(
        "--distributed", default="auto", help="as of train: auto, off or on; all processes evaluate"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    args = _parser().parse_args(list(argv))
    floors = [_floor(x) for x in args.floor]

    from clip_jax.sharding import processes, start

    start.start(args.distributed)

    from clip_jax.data.sources import all_captions, index_dir, open_source
    from clip_jax.eval.run import choose, run_tasks, score_names, table
    from clip_jax.inference.load import load

    model = load(args.run, ema=args.ema)
    cfg = model.config
    tasks = choose(cfg.eval.tasks, [t for t in args.tasks.split(",") if t])
    if not tasks:
        raise UserError(f"{args.run}: its config has no config.eval.tasks; nothing to evaluate")
    _check_names(floors, score_names(tasks))
    split = cfg.data.test
    if args.paths:
        split = dataclasses.replace(split, paths=tuple(args.paths))
    captions: list[str] = []
    if any(t.distractors for t in tasks):
        train = processes.by_host(
            lambda: open_source(cfg.data.train, index_dir=index_dir(args.run), limit=cfg.data.limit)
        )
        captions = sorted(set(all_captions(train)))
    test = processes.by_host(lambda: open_source(split, index_dir=index_dir(args.run)))
    processes.same({"the test data": test.fingerprint}, "let all see the same data")
    result = run_tasks(model, test, tasks, captions=captions)
    if processes.lead():
        print(table(result.rows))
    _check(result.metrics, floors)  # the scores are the same on all processes
    return DONE


def _floor(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return f"eval/{name.removeprefix('eval/')}", float(value)
    except ValueError as e:
        raise UserError(f"--floor: must be NAME=VALUE (got '{text}')") from e


def _check_names(floors: list[tuple[str, float]], known: Collection[str]) -> None:
    from clip_jax.sharding import processes

    for name, _ in floors:
        if name not in known:
            short = [k.removeprefix("eval/") for k in known]
            name = name.removeprefix("eval/")
            raise processes.error(
                f"--floor: no score '{name}'; here: {', '.join(short)}{near(name, short)}"
            )


def _check(metrics: dict[str, float], floors: list[tuple[str, float]]) -> None:
    from clip_jax.sharding import processes

    _check_names(floors, metrics)  # of distractors there are none without new captions
    below = [
        f"{name} = {metrics[name]:.4f} is below {floor}"
        for name, floor in floors
        if metrics[name] < floor
    ]
    if below:
        raise processes.stop("; ".join(below), CHECK_FAILED)
