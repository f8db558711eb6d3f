"""clip_jax train --config=RECIPE[:variant] --workdir=DIR [--config.field=value ...]"""

from collections.abc import Sequence

from clip_jax.config.codec import describe
from clip_jax.config.load import load, recipe_names
from clip_jax.config.schema import Config
from clip_jax.errors import DONE, UserError, near
from clip_jax.files import resolved

OPTIONS = {
    "--config": "recipe: a name, or a file with get_config(arg), with an optional :variant",
    "--workdir": "folder or URL of the run; the same command goes on where it stopped",
    "--dry_run": "print config, mesh, parameters, steps and memory; train nothing",
    "--accept_changes": "go on although optimizer, schedule or length changed",
    "--distributed": "auto: join the other processes of a recognised cluster; on: must; off: never",
}


def usage() -> str:
    """The text of `clip_jax train --help`: every option and every field."""
    lines = ["usage: " + (__doc__ or "").strip(), "", "options:"]
    lines += [f"  {name:17} {text}" for name, text in OPTIONS.items()]
    lines += ["", "recipes: " + ", ".join(recipe_names()) + "; each has :overfit, a check of data"]
    lines += ["", "fields of the config (type; default), each set by --config.FIELD=VALUE:"]
    for path, kind, default, meaning in describe():
        lines.append(f"  --{path}  ({kind}; {default!r})")
        lines.append(f"      {meaning}")
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Own options by name, and the overrides of fields.

    Raises:
        UserError: an unknown or repeated option, or one without a value.
    """
    own: dict[str, str] = {}
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        item = rest.pop(0)
        name, equals, value = item.partition("=")
        if name.startswith(("--config.", "--noconfig.")):
            if not equals and rest and not rest[0].startswith("--"):
                item = f"{item}={rest.pop(0)}"
            overrides.append(item)
            continue
        if name not in OPTIONS:
            raise UserError(f"train: no such option (got '{item}'){near(name, OPTIONS)}")
        if name in own:
            raise UserError(f"{name}: given twice; keep one")
        switch = name in ("--dry_run", "--accept_changes")
        if switch and equals:
            raise UserError(f"{name}: takes no value (got '{value}')")
        if not switch and not equals:
            if not rest:
                raise UserError(f"{name}: needs a value; write {name}=VALUE")
            value = rest.pop(0)
        own[name] = value
    return own, tuple(overrides)


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    if "--help" in argv or "-h" in argv:
        print(usage())
        return DONE
    own, overrides = parse(argv)
    for name in ("--config", "--workdir"):
        if not own.get(name) and not (name == "--workdir" and "--dry_run" in own):
            raise UserError(f"{name}: is missing; {OPTIONS[name]}")
    if "--workdir" in own:
        own["--workdir"] = resolved(own["--workdir"])
    in_epochs: list[Config] = []  # the data are counted below

    def many(cfg: Config) -> int:
        in_epochs.append(cfg)
        return 10**9

    try:
        cfg = load(own["--config"], overrides, pairs=many)
    except UserError:  # unless it is right for an epoch of one step
        if not in_epochs:
            raise
        cfg = load(own["--config"], overrides, pairs=lambda c: c.batch_size)

    from clip_jax.sharding import processes, start

    start.start(own.get("--distributed", "auto"))  # last: what went wrong before, did so on all

    # jax comes with these: --help must not wait for it
    from clip_jax.data.sources import counter
    from clip_jax.train import compiler, dry_run, loop

    compiler.one_step_at_a_time()
    if in_epochs:
        pairs = counter(own.get("--workdir", ""))
        cfg = processes.by_host(lambda: load(own["--config"], overrides, pairs=pairs))

    if "--dry_run" in own:
        text = dry_run.describe(cfg)
        if processes.lead():
            print(text)
        return DONE
    loop.run(cfg, own["--workdir"], accept_changes="--accept_changes" in own)
    return DONE
