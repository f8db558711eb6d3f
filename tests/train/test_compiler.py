"""Options of the compiler are checked by the compiler; the cache is private."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from clip_jax.config.schema import CompileConfig
from clip_jax.errors import UserError
from clip_jax.train import compiler

ASYNC = "JAX_CPU_ENABLE_ASYNC_DISPATCH"


def lowered():
    return jax.jit(lambda x: x @ x).lower(jnp.ones((256, 256)))


@pytest.mark.parametrize("preset", ["", *(p for p in compiler.PRESETS if p[:3] in ("cpu", "gpu"))])
def test_presets_of_the_cpu_and_of_gpus_compile(preset):
    run = compiler.compiled(lowered(), CompileConfig(preset=preset))
    assert float(run(jnp.ones((256, 256)))[0, 0]) == 256.0


def test_own_options_come_after_the_presets():
    cfg = CompileConfig(preset="tpu_overlap", options=("xla_x=1=2", "xla_tpu_overlap=false"))
    got = compiler.options(cfg)
    assert got["xla_x"] == "1=2" and got["xla_tpu_overlap"] == "false"
    assert compiler.PRESETS["tpu_overlap"].items() <= got.items()
    assert compiler.options(CompileConfig()) == {}


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (CompileConfig(preset="cpu_eigne"), "compile.preset: unknown .*did you mean 'cpu_eigen'"),
        (
            CompileConfig(options=("xla_nonsense=1",)),
            "No such compile option: 'xla_nonsense'; mend",
        ),
        (CompileConfig(options=("xla_cpu_experimental_ynn_fusion_type=zz",)), "config.compile: "),
    ],
)
def test_what_the_compiler_refuses_is_one_line(cfg, message):
    with pytest.raises(UserError, match=message) as e:
        compiler.compiled(lowered(), cfg)
    assert "\n" not in str(e.value)


@pytest.fixture
def cache_setting():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_cache_is_private(tmp_path, cache_setting):
    compiler.use_cache("")
    folder = tmp_path / "programs"
    compiler.use_cache(str(folder))
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(UserError, match="others may write into"):
        compiler.use_cache(str(open_to_all))
    with pytest.raises(UserError, match="a folder of this machine .got 'gs://bucket/programs'.;"):
        compiler.use_cache("gs://bucket/programs")
    assert jax.config.jax_compilation_cache_dir == str(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache_dir: cannot be made \(.*exists"):
        compiler.use_cache(str(tmp_path / "file"))


@pytest.mark.parametrize(("environment", "ended"), [({}, True), ({ASYNC: "1"}, False)])
def test_on_cpus_a_program_has_ended_when_its_call_returns(environment, ended):
    """In a process of its own: JAX looks at the setting where it finds its devices."""
    code = (
        "import jax, jax.numpy as jnp\n"
        "from clip_jax.train import compiler\n"
        "compiler.one_step_at_a_time()\n"
        "busy = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: y @ y, x))\n"
        "x = jax.block_until_ready(jnp.eye(1024))\n"
        "run = busy.lower(x).compile()\n"
        "print(run(x).is_ready())"
    )
    env = {k: v for k, v in os.environ.items() if k != ASYNC} | environment
    env["JAX_PLATFORMS"] = "cpu"
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.split() == [str(ended)], out.stderr
