"""clip_jax sweep --config=RECIPE --workdir=DIR [--parallel=N] [--sort=METRIC] [--config.x=y ...]"""

import signal
import sys
from collections.abc import Sequence

from clip_jax.config.options import Options, at_least_one
from clip_jax.errors import CHECK_FAILED, DONE, INTERRUPTED, RESTART, UserError
from clip_jax.files import resolved


def parser() -> Options:
    """The options of the verb."""
    out = Options(
        "sweep",
        "Run all trials that the recipe's sweep(add) names; the same command goes on. Other "
        "options, --config.FIELD=VALUE, hold for every trial.",
    )
    out.add_argument("--config", required=True, help="a recipe with get_config and sweep(add)")
    out.add_argument(
        "--workdir", type=resolved, required=True, help="folder of the sweep: one run per trial"
    )
    out.add_argument(
        "--parallel",
        type=at_least_one,
        default=1,
        help="trials at a time; the accelerators of this machine are divided among them",
    )
    out.add_argument(
        "--sort", default="", help="metric that orders the table; -METRIC: largest first"
    )
    out.add_argument(
        "--print",
        dest="kind",
        default="",
        help="run nothing; print the commands: shell, slurm (a job array), tpu_vm or xpk",
    )
    out.add_argument("--table", action="store_true", help="run nothing; show what is there")
    return out


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    overrides = tuple(a for a in argv if a.startswith(("--config.", "--noconfig.")))
    for item in overrides:
        if "=" not in item and not item.startswith("--noconfig."):
            raise UserError(f"sweep: {item}: write it as {item}=VALUE")
    args = parser().parse_args([a for a in argv if a not in overrides])

    from clip_jax.data.sources import counter
    from clip_jax.metrics.writers import Outlet
    from clip_jax.sweep import emit, results, run, trials

    found = trials.expand(args.config, overrides, counter(args.workdir))
    if args.kind:
        if args.kind not in emit.KINDS:
            raise UserError(f"--print: must be one of {', '.join(emit.KINDS)} (got '{args.kind}')")
        print(emit.lines(args.kind, found, args.workdir))
        return DONE
    statuses: dict[str, int] = {}
    if not args.table:
        groups, out = run.device_groups(args.parallel), Outlet(sys.stdout)
        statuses = run.run(found, args.workdir, groups, lambda text: out.write(f"{text}\n"))
    if stopped := statuses.pop("", 0):
        print("stopped; the same command goes on")
        return INTERRUPTED if stopped == signal.SIGINT else RESTART
    rows = results.rows(found, args.workdir, statuses)
    by = args.sort or results.default_sort(rows)
    mistake = None
    try:
        rows = results.ordered(rows, by)
    except UserError as e:  # told last: hours of trials are in the table
        mistake, by = e, results.default_sort(rows)
        rows = results.ordered(rows, by)
    print(results.text(rows))
    paths = results.write(rows, args.workdir, found[0].cfg.name, by)
    print(f"results: {paths[0]}, {paths[1]}")
    failed = [name for name, status in statuses.items() if status != DONE]
    if failed:
        print(f"{len(failed)} of {len(found)} trials failed; the same command tries them again")
    if mistake:
        raise mistake
    return CHECK_FAILED if failed else DONE
