"""The stored config of a run."""

import pytest

import tiny
from clip_jax.config.stored import read_config, write_config
from clip_jax.errors import UserError

pytestmark = pytest.mark.core


def test_round_trip_and_messages(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        read_config(str(tmp_path))
    write_config(str(tmp_path), tiny.config("x"))
    assert read_config(str(tmp_path)) == tiny.config("x")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not JSON"):
        read_config(str(tmp_path))
