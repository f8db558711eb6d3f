"""One trained run for all tests of its use."""

import pytest

import clip_jax
import tiny


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """The folder that the run was trained on: 64 squares in 8 colours."""
    return tiny.write_folder(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def run(pairs, tmp_path_factory):
    """Workdir of a run that knows its colours."""
    workdir = tmp_path_factory.mktemp("run")
    clip_jax.pretrain(tiny.config(pairs, num_steps=150), str(workdir))
    return workdir


@pytest.fixture(scope="session")
def model(run):
    return clip_jax.load(str(run))
