"""Peers that tests of bench/peer.py start in a process of their own."""

import os


def counting(start):
    """Each call counts on, and tells which process did."""
    held = [start]

    def run(by):
        held[0] += by
        return held[0], os.getpid()

    return run


def absent():
    raise ImportError("no such package")


def broken():
    raise ValueError("no such\nmodel")


def dying():
    return lambda: os._exit(1)
