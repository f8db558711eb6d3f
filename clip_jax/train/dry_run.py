"""What a run would be: resolved config, mesh, parameters, steps, memory. Writes nothing."""

from clip_jax.config.schema import Config
from clip_jax.sharding.rules import copies_line, large_copies
from clip_jax.train import program, stages, start


def describe(cfg: Config) -> str:
    """Compiles the step of each stage for shapes only and says what it needs."""
    return "\n".join([start.config_lines(cfg), *map(_stage, stages.programs(cfg))])


def _stage(stage: stages.Stage) -> str:
    cfg, prog = stage.cfg, stage.prog
    sizes = " x ".join(f"{k} {v}" for k, v in prog.mesh.shape.items())
    params = prog.abstract.params
    copies = large_copies(params, prog.mesh)
    towers = {k: program.num_params(params[k]) for k in ("image", "text")}
    return "\n".join(
        [
            "",
            *([stage.title] if stage.title else []),
            f"mesh: {sizes} = {prog.mesh.size} of {prog.mesh.devices.flat[0].device_kind}",
            f"parameters: {program.num_params(params):,} "
            f"(image {towers['image']:,}, text {towers['text']:,})",
            f"steps: {cfg.num_steps:,} of {cfg.batch_size:,} pairs = {stage.examples:,} examples",
            *([copies_line(copies)] if copies else []),
            program.memory_line(prog.compile()),
        ]
    )
