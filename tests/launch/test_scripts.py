"""The launch scripts with stand-ins for Python and uv: nothing is installed or downloaded."""

import pathlib
import shutil
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"])
TOOLS = (
    "bash basename cat chmod cksum cp dirname env flock grep ls mkdir mv rm sed tail uname".split()
)

# Writes its arguments to a log; makes virtual environments that hold itself; installs nothing.
PYTHON = """#!{bash}
echo "python $*" >>"{log}"
case "$1 $2" in
  "-c "*version_info*) echo {version} ;;
  "-c "*ensurepip*) exit {without_venv} ;;
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip") [ -z "${{BROKEN:-}}" ] || {{ echo "no route to host"; exit 1; }} ;;
  "-m clip_jax") env | grep -E "^(MALLOC|JAX)_" >>"{log}"; exit "${{STATUS:-0}}" ;;
esac
"""
UV = """#!{bash}
echo "uv $*" >>"{log}"
if [ "$1" = venv ]; then
  for last; do :; done
  mkdir -p "$last/bin"
  printf '#!{bash}\\necho "python $*" >>"{log}"\\necho 3.13\\n' >"$last/bin/python"
  chmod +x "$last/bin/python"
fi
"""


class Machine:
    """A checkout with the launch scripts, and a PATH that holds only what is put there."""

    def __init__(self, folder: pathlib.Path):
        self.root = folder / "a checkout"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.bin.mkdir()
        shutil.copytree(ROOT / "launch", self.root / "launch")
        for name in ("pyproject.toml", "setup.py", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)

    def add(self, name: str, text: str, **values: object) -> None:
        bash = shutil.which("bash")
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text.format(bash=bash, log=self.log, **values))
        (self.bin / name).chmod(0o755)

    def python(self, name: str = "python3", version: str = "3.12", without_venv: int = 0) -> None:
        self.add(name, PYTHON, version=version, without_venv=without_venv)

    def call(self, script: str, *arguments: str, **environment: str):
        """Runs launch/SCRIPT from another folder and with no other environment."""
        self.log.write_text("")
        return subprocess.run(
            [str(self.bin / "bash"), str(self.root / "launch" / script), *arguments],
            env={"PATH": str(self.bin), "HOME": str(self.bin), **environment},
            cwd=self.bin,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self, word: str) -> list[str]:
        """The logged lines that hold `word`."""
        return [line for line in self.log.read_text().splitlines() if word in line]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_syntax(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck():
    path = f"{sysconfig.get_path('scripts')}:/usr/local/bin:/usr/bin:/bin"
    program = shutil.which("shellcheck", path=path)
    if program is None:
        pytest.skip("shellcheck is not installed")
    command = [program, "-S", "style", *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def fails(done, text: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert text in done.stderr


def test_no_python(machine):
    fails(machine.call("demo.sh"), "python3 does not run; install Python 3.11 to 3.13")


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.14"])
def test_unsupported_python(machine, version):
    machine.python(version=version)
    text = f"clip_jax runs on Python 3.11 to 3.13 (python3 is Python {version})"
    fails(machine.call("test.sh"), text)
    assert not (machine.root / ".venv").exists()


def test_without_venv_module(machine):
    machine.python(without_venv=1)
    fails(machine.call("demo.sh"), "lacks its venv module; install the package python3.12-venv")


def test_python_variable_is_obeyed_or_refused(machine):
    machine.python()
    fails(machine.call("demo.sh", PYTHON="/no/python"), "/no/python does not run")
    machine.python("mine", version="3.9")
    fails(machine.call("demo.sh", PYTHON="mine"), "mine is Python 3.9")
    assert machine.call("demo.sh", PYTHON="./python3").returncode == 0


def test_passes_over_pythons_that_do_not_run_or_lack_venv(machine):
    machine.add("python3.13", "#!{bash}\necho not installed >&2\nexit 127\n")
    machine.python("python3.12", version="3.12", without_venv=1)
    machine.python("python3.11", version="3.11")
    done = machine.call("setup.sh", "base")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Setting up .venv with Python 3.11" in done.stdout


def test_second_call_installs_nothing_and_changes_install_again(machine):
    machine.python()
    assert machine.call("setup.sh", "test").returncode == 0
    assert machine.calls("-c constraints.txt --no-build-isolation -e .[test]")
    for kind in ("test", "base"):  # the tests' environment serves the demo
        assert machine.call("setup.sh", kind).stdout == ""
        assert machine.calls("pip") == []
    with open(machine.root / "constraints.txt", "a") as f:
        f.write("# changed\n")
    machine.call("setup.sh", "test")
    assert machine.calls("pip") and not machine.calls("venv")  # in place
    machine.python("python3.11", version="3.11")
    machine.call("setup.sh", "test", PYTHON="python3.11")
    assert machine.calls("-m venv")  # another Python: a new one


def test_interrupted_installation_starts_over(machine):
    machine.python()
    done = machine.call("setup.sh", "base", BROKEN="1")
    assert done.returncode == 2
    assert "no route to host" in done.stderr and "error: the installation failed" in done.stderr
    (machine.root / ".venv" / "half").write_text("")
    assert machine.call("setup.sh", "base").returncode == 0
    assert machine.calls("-m venv") and not (machine.root / ".venv" / "half").exists()


def test_interrupted_change_starts_over(machine):
    machine.python()
    machine.call("setup.sh", "base")
    constraints = machine.root / "constraints.txt"
    before = constraints.read_text()
    constraints.write_text(before + "# changed\n")
    assert machine.call("setup.sh", "base", BROKEN="1").returncode == 2
    constraints.write_text(before)  # what stands is neither the old nor the new
    assert machine.call("setup.sh", "base").returncode == 0
    assert machine.calls("-m venv")


def test_moved_checkout_starts_over(machine):
    machine.python()
    machine.call("setup.sh", "base")
    machine.root = machine.root.rename(machine.root.parent / "moved")
    machine.call("setup.sh", "base")
    assert machine.calls("-m venv")


def test_foreign_environment_is_left_alone(machine):
    machine.python()
    (machine.root / ".venv").mkdir()
    (machine.root / ".venv" / "mine").write_text("")
    fails(machine.call("setup.sh", "base"), ".venv was not made by launch/setup.sh; move it away")
    assert (machine.root / ".venv" / "mine").exists()


def test_uv_serves_where_it_is(machine):
    machine.add("uv", UV)
    done = machine.call("setup.sh", "base")  # no Python on this machine: uv brings one
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.calls("uv venv")[0].endswith("--python 3.13 .venv")
    start = "uv pip install --python .venv/bin/python -c constraints.txt "
    assert machine.calls(start + "--no-build-isolation -e .[digits]")
    assert machine.calls("-m pip") == []


def test_demo_runs_the_recipe_with_all_arguments(machine):
    machine.python()
    done = machine.call("demo.sh", "--config.name=two words", "--workdir=my run")
    assert done.returncode == 0
    assert machine.calls("-m clip_jax") == [
        "python -m clip_jax train --config=glyphs --workdir=my run --config.name=two words"
    ]
    assert machine.calls("MALLOC_MMAP_THRESHOLD_=4294967296")
    machine.call("demo.sh", "--quick", JAX_PLATFORMS="tpu")
    assert machine.calls("-m clip_jax") == [
        f"python -m clip_jax train --config=glyphs:quick --workdir={machine.root}/runs/demo_quick"
    ]
    assert machine.calls("JAX_PLATFORMS=tpu")


def test_demo_refuses_what_it_does_not_know_before_it_installs(machine):
    machine.python()
    fails(machine.call("demo.sh", "--quik"), "no option '--quik'; --help tells them")
    assert machine.calls("") == []
    assert machine.call("demo.sh", "--config.num_steps", "3").returncode == 0
    assert machine.calls("-m clip_jax")[0].endswith("--config.num_steps 3")


def test_demo_ends_with_the_status_of_the_run(machine):
    machine.python()
    assert machine.call("demo.sh").returncode == 0
    done = machine.call("demo.sh", STATUS="42")
    assert (done.returncode, done.stdout) == (42, "")


def test_local_hands_all_arguments_to_the_launcher(machine):
    machine.python()
    assert "bash launch/local.sh --processes=2" in machine.call("local.sh", "--help").stdout
    assert machine.calls("python") == []
    done = machine.call("local.sh", "--processes=2", "--", "--config.name=two words")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.calls("local.py") == [
        f"python {machine.root}/launch/local.py --processes=2 -- --config.name=two words"
    ]


def test_test_runs_pytest_with_its_arguments(machine):
    machine.python()
    assert machine.call("test.sh", "-k", "a or b").returncode == 0
    assert machine.calls("-m pytest") == [
        "python -m pytest -m not parity and not gpu and not tpu -k a or b"
    ]
    assert machine.calls("--no-deps open_clip_torch==")
    assert machine.call("test.sh", "--parity", "-x").returncode == 0
    assert machine.calls("-m pytest") == ["python -m pytest -m parity -x"]
    assert machine.calls("torch==2.13.0") and (machine.root / ".venv-parity").is_dir()


def test_parity_says_why_it_is_skipped(machine):
    machine.python()
    text = (machine.bin / "python3").read_text()
    missing = '"-m pip") case "$*" in *torch==*) echo "No matching distribution"; exit 1 ;; esac ;;'
    (machine.bin / "python3").write_text(
        text.replace('case "$1 $2" in', f'case "$1 $2" in {missing}')
    )
    done = machine.call("test.sh", "--parity")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("SKIPPED: the parity tests need a CPU build")
    assert machine.calls("-m pytest") == []
