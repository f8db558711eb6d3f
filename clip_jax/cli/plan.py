"""clip_jax plan --config=RECIPE[:variant] --topology=NAME [--search] [--config.field=value ...]"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence

from clip_jax.config import stages
from clip_jax.config.options import Options
from clip_jax.config.schema import Config
from clip_jax.errors import CHECK_FAILED, DONE, Stop, UserError
from clip_jax.planner import ENVIRONMENT


def parser() -> Options:
    """The options; fields of the config come as --config.FIELD=VALUE, as for train."""
    options = Options("plan", "Compile a run for hardware that is not here: does it fit, how fast.")
    options.add_argument("--config", required=True, help="recipe, as for clip_jax train")
    options.add_argument(
        "--topology",
        required=True,
        help="v5e:16x16, an accelerator type (v5litepod-256), of each of config.mesh.num_slices "
        "slices; or GPUs (H100:8): estimates only",
    )
    options.add_argument(
        "--search", action="store_true", help="try meshes, remat and micro-batches for the fastest"
    )
    options.add_argument("--stage", default="", help="of a recipe with stages: which one")
    options.add_argument(
        "--samples", type=_above_zero, default=0.0, help="pairs of the whole run; else the recipe's"
    )
    options.add_argument("--price", type=_above_zero, help="of a chip and hour, for the cost")
    options.add_argument("--json", default="", help="file for the plan as JSON")
    options.add_argument("--cache", default="", help="folder of compiled results")
    return options


def main(argv: Sequence[str]) -> int:
    """Runs the verb. CHECK_FAILED if the run does not fit."""
    args, overrides = parser().parse_with_fields(argv)

    from clip_jax.config.chips import joined, parse_topology
    from clip_jax.config.load import load

    topology = parse_topology(args.topology)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cfg = _stage(load(args.config, overrides, needs_data=False), args.stage)
    topology = joined(topology, cfg.mesh.num_slices)

    from clip_jax import files
    from clip_jax.planner import cache, plan  # jax comes with them

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    where = args.cache or cache.folder()
    samples = args.samples or float(cfg.num_steps * cfg.batch_size)
    if args.search:
        from clip_jax.planner import search

        found = search.run(cfg, topology, where, say)
        print(search.text(found, samples, args.price))
        data, best = search.to_json(found, samples, args.price), found.best
        refusal = search.refusal(found)
    else:
        best = plan.make(cfg, topology, where, say)
        print(plan.text(best, samples, args.price))
        data, refusal = plan.to_json(best, samples, args.price), plan.refusal(best)
    if args.json:
        files.write_bytes(args.json, json.dumps(data, indent=1).encode() + b"\n")
    if best is None or best.fits is False:
        raise Stop(refusal, CHECK_FAILED)
    return DONE


def _stage(cfg: Config, name: str) -> Config:
    """The config of the stage that is asked for; of the whole run if it has none."""
    parts = stages.expand(cfg)
    if not name and len(parts) == 1:
        return parts[0].cfg
    found = [s.cfg for s in parts if s.name == name and name]
    if not found:
        known = ", ".join(s.name for s in parts if s.name) or "none"
        raise UserError(f"--stage: no stage '{name}' in {cfg.name}; its stages: {known}")
    return found[0]


def _above_zero(text: str) -> float:
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 (got '{text}')")
    return value
