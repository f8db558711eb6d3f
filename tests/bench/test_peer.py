"""A peer in a process of its own: its answers, and how its failures are told."""

import os

import pytest
import tiny_peer

from clip_jax.bench import peer
from clip_jax.errors import UserError


def test_it_answers_from_another_process_and_keeps_its_state():
    run = peer.apart(tiny_peer.counting, 5)
    (first, one), (second, two) = run(1), run(3)
    assert (first, second) == (6, 9) and one == two != os.getpid()


def test_what_is_not_installed_is_told_as_such():
    with pytest.raises(ImportError, match="no such package"):
        peer.apart(tiny_peer.absent)


def test_other_failures_are_one_line():
    with pytest.raises(UserError, match="the peer failed .ValueError: no such model"):
        peer.apart(tiny_peer.broken)
    run = peer.apart(tiny_peer.dying)
    with pytest.raises(UserError, match="the peer failed .its process ended"):
        run()
