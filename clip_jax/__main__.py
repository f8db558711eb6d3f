"""`clip_jax VERB ...`, also `python -m clip_jax VERB ...`: dispatch, errors to exit statuses."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from clip_jax.errors import BUG, DONE, INTERRUPTED, USER, Stop, UserError, near

VERBS = {
    "train": "train a model from image-text pairs, or go on where a run stopped",
    "plan": "compile a run for hardware that is not here: does it fit, and how fast",
    "sweep": "run many variants of a recipe, or print the commands that would",
    "eval": "evaluate a finished or running run",
    "embed": "embed a data set into Parquet files, for search and filtering",
    "classify": "say which of some names fits each picture",
    "search": "find the embedded images nearest to a text or a picture",
    "export": "write a model in the files of OpenCLIP, Hugging Face, big_vision or diffusers",
    "bench": "measure a part of the program against its peers",
}


def usage() -> str:
    """The text of `clip_jax --help`."""
    lines = [f"  {v:8} {text}" for v, text in VERBS.items()]
    return "\n".join(
        [
            "usage: clip_jax VERB [options]      (also: python -m clip_jax VERB ...)",
            "",
            "verbs:",
            *lines,
            "",
            "`clip_jax VERB --help` shows the options of a verb.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit status; see docs/errors.md.

    Where several processes have joined, all but a good end exits here, for they cannot wait for
    each other; so does a start that failed while its step compiles, which Python would wait for,
    but not where a program calls this with an `argv`.
    """
    own = argv is None
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
    except Exception:
        if not _several() and not (own and _compiling()):
            raise
        traceback.print_exc()
        status = BUG
    if status != DONE and (start := sys.modules.get("clip_jax.sharding.start")):
        start.leave(status, at_once=own and _compiling())
    return status


def _several() -> bool:
    start = sys.modules.get("clip_jax.sharding.start")
    return start is not None and start.several()


def _compiling() -> bool:
    compiling = sys.modules.get("clip_jax.train.compiling")
    return compiling is not None and compiling.running()


def _run(args: list[str]) -> int:
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(usage())
            return DONE if args else USER
        if args[0] == "--version":
            print(importlib.import_module("clip_jax").__version__)
            return DONE
        if args[0] not in VERBS:
            raise UserError(
                f"clip_jax: no such verb (got '{args[0]}'); known: {', '.join(VERBS)}"
                f"{near(args[0], VERBS)}"
            )
        return importlib.import_module(f"clip_jax.cli.{args[0]}").main(args[1:])
    except UserError as e:
        _traceback()
        for line in str(e).splitlines():
            _tell(f"error: {line}")
        return USER
    except Stop as e:
        if str(e):  # process 0 has told it
            _tell(str(e))
        return e.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head`: no noise at exit
        return BUG


def _tell(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it any more; the status is still read
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _traceback() -> None:
    if os.environ.get("CLIP_JAX_TRACEBACK") == "1":
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
