"""What a run would be: resolved config, mesh, parameters, steps, memory. Writes nothing."""

from clip_jax.config.schema import Config
from clip_jax.sharding.mesh import make_mesh
from clip_jax.train import program, start


def describe(cfg: Config) -> str:
    """Compiles the step for shapes only and says what it needs."""
    mesh = make_mesh(cfg.mesh)
    prog = program.build(cfg, mesh)
    sizes = " x ".join(f"{k} {v}" for k, v in mesh.shape.items())
    params = prog.abstract.params
    towers = {k: program.num_params(params[k]) for k in ("image", "text")}
    return "\n".join(
        [
            start.config_lines(cfg),
            "",
            f"mesh: {sizes} = {mesh.size} of {mesh.devices.flat[0].device_kind}",
            f"parameters: {program.num_params(params):,} "
            f"(image {towers['image']:,}, text {towers['text']:,})",
            f"steps: {cfg.num_steps:,} of {cfg.batch_size:,} pairs = "
            f"{cfg.num_steps * cfg.batch_size:,} examples",
            program.memory_line(prog.compile()),
        ]
    )
