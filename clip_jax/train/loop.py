"""run(cfg, workdir): mesh, data, state, loop, evaluation, checkpoints. One screen a phase.

Side effects all live here: files of the workdir, the terminal, signals. The order is fixed:
lock, config, data, program, start state, compile, loop, final evaluation, report.
"""

import collections
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import jax

from clip_jax import files
from clip_jax.checkpoint.lock import WorkdirLock, hold
from clip_jax.checkpoint.manager import Checkpoints
from clip_jax.config.schema import Config
from clip_jax.config.stored import read_config, write_config
from clip_jax.data.feed import feed, host_rows
from clip_jax.data.pipeline import HostBatch, Pipeline
from clip_jax.data.sources import Source, all_captions, index_dir, open_source
from clip_jax.errors import CHECK_FAILED, DIVERGED, INTERRUPTED, Stop, UserError
from clip_jax.eval.run import Result, run_tasks
from clip_jax.eval.zeroshot import check_task
from clip_jax.inference.api import Model
from clip_jax.inference.load import TOKENIZER_FILE
from clip_jax.metrics.clock import Clock
from clip_jax.metrics.writers import JsonlWriter, LiveLine, drop_after, read_metrics
from clip_jax.sharding.mesh import make_mesh
from clip_jax.sharding.rules import large_copies
from clip_jax.tokenizers import Tokenizer
from clip_jax.tokenizers import build as build_tokenizer
from clip_jax.train import program, start, summary
from clip_jax.train.compiler import use_cache
from clip_jax.train.signals import Signals
from clip_jax.train.state import TrainState, init_state

LAYOUT = ("params", "stats", "opt_state")  # each a checkpoint item; the rest travels as "rest"
BAD_MINIMUM = 1000  # pairs seen before the share of bad ones is judged


def run(cfg: Config, workdir: str, *, accept_changes: bool = False) -> TrainState:
    """Trains until cfg.num_steps, from where the workdir stands.

    Raises:
        UserError: what the user can mend.
        Stop: stopped by a signal (42, 130), diverged (4), or failed the overfit check (3).
    """
    if jax.process_count() > 1:
        raise UserError("clip_jax train: runs in one process so far; start one, on all its devices")
    with _out_of_memory(), contextlib.ExitStack() as stack:
        use_cache(cfg.compile.cache_dir)
        mesh = make_mesh(cfg.mesh)
        prog = program.build(cfg, mesh)
        line = LiveLine(cfg.num_steps, sys.stdout)
        stack.callback(line.close)
        lock = stack.enter_context(hold(workdir, line.say))
        signals = stack.enter_context(Signals())
        checkpoints = Checkpoints(workdir, keep=cfg.checkpoint.keep)
        stack.callback(checkpoints.close)
        if checkpoints.steps():  # a first start that failed leaves nothing to agree with
            for text in start.check_same_run(read_config(workdir), cfg, accept_changes):
                line.say(f"changed: {text}")
        source = open_source(cfg.data.train, index_dir=index_dir(workdir), limit=cfg.data.limit)
        restored = start.restore(checkpoints, _items(prog.abstract), line.say)
        stored = restored.extra_files[TOKENIZER_FILE] if restored else None
        tokenizer = make_tokenizer(cfg, source, stored)
        pipeline = Pipeline(
            source, tokenizer, cfg.data, cfg.model.image, cfg.model.text.context, cfg.seed
        )
        check_size(cfg, pipeline)
        order = start.order_parts(cfg, pipeline)
        if restored:
            start.check_same_order(restored.manifest["order"], order)
            state = _state(restored.items)
            position, first = restored.manifest["position"], restored.step
        else:
            with jax.set_mesh(mesh):
                state = init_state(prog.init, prog.abstract, cfg.seed)
            position, first = 0, 0
        job = Job(cfg, workdir, prog, pipeline, checkpoints, lock, signals, line, order)
        test = job.test_source()
        write_config(workdir, cfg)
        files.write_bytes(files.join(workdir, _tokenizer_name(cfg)), tokenizer.to_bytes())
        if first < cfg.num_steps:
            state = job.train(state, test, first, position)
        job.conclude(state, test)
        return state


@dataclasses.dataclass(frozen=True)
class Job:
    """One attempt at a run, all parts open."""

    cfg: Config
    workdir: str
    prog: program.Program
    pipeline: Pipeline
    checkpoints: Checkpoints
    lock: WorkdirLock
    signals: Signals
    line: LiveLine
    order: dict[str, Any]

    def train(
        self, state: TrainState, test: Source | None, first: int, position: int
    ) -> TrainState:
        """From step `first` to the end."""
        cfg, prog = self.cfg, self.prog
        self.line.say(plan_line(cfg, prog, self.pipeline.size, first))
        if copies := large_copies(prog.abstract.params, prog.mesh):
            self.line.say(f"whole on every device, though large: {', '.join(copies)}")
        files.remove(files.join(self.workdir, "report.html"))  # that of a shorter run
        execute = prog.compile()
        self.line.say(program.memory_line(execute))
        writer = JsonlWriter(self.workdir, attempt=drop_after(self.workdir, first))
        if first and self.evaluation_due(first):  # killed between a checkpoint and its scores
            self.evaluate(state, test, first, writer)
        batches = self.pipeline.batches(
            start=position,
            batch_size=cfg.batch_size,
            num_steps=cfg.num_steps - first,
            rows=host_rows(cfg.batch_size, prog.mesh),
        )
        stream = feed(batches, prog.mesh)
        log = Log(self, writer, first)
        with jax.set_mesh(prog.mesh), jax.transfer_guard("disallow"):
            for step in range(first + 1, cfg.num_steps + 1):
                with log.clock.waiting():
                    batch, host = next(stream)
                state, metrics = execute(state, batch)
                position += cfg.batch_size
                log.count(host)
                last = step == cfg.num_steps
                log.flush()  # the line of an earlier step: its arrays are ready by now
                if step % cfg.log.every == 0 or last or step == first + 1:
                    log.keep(step, metrics)
                stop = self.signals.status is not None
                save = last or stop or step % cfg.checkpoint.every == 0
                evaluate = self.evaluation_due(step) and not last and not stop
                if save or evaluate:
                    log.flush()
                with log.clock.paused():
                    if save:
                        self.save(step, state, position)
                    if stop and not last:
                        self.stop(step)
                    if evaluate:
                        self.evaluate(state, test, step, writer)
        self.checkpoints.wait()
        return state

    def evaluation_due(self, step: int) -> bool:
        """Whether the scores of `step` belong into the metrics and are not there yet."""
        every = self.cfg.eval.every
        if not self.cfg.eval.tasks or not every or step % every:
            return False
        written = read_metrics(self.workdir)
        return not any(m["step"] == step and is_scores(m) for m in written)

    def evaluate(
        self, state: TrainState, test: Source | None, step: int, writer: JsonlWriter
    ) -> None:
        """Zero-shot scores of the current parameters into the metrics."""
        if test is not None:
            result = run_tasks(self.model(state), test, self.cfg.eval.tasks)
            writer.write(step, result.metrics)
            top = {k: v for k, v in result.metrics.items() if "/top" in k}
            text = ", ".join(f"{k.removeprefix('eval/')} {100 * v:.1f} %" for k, v in top.items())
            self.line.say(f"step {step}: {text}")

    def model(self, state: TrainState) -> Model:
        """The current parameters, ready to use."""
        return Model(
            self.cfg,
            state.params,
            state.stats,
            self.pipeline.tokenizer,
            self.prog.mesh,
            self.cfg.eval.batch_size,
        )

    def save(self, step: int, state: TrainState, position: int) -> None:
        """Starts an asynchronous checkpoint."""
        self.lock.check()
        manifest = {"position": position, "order": self.order, "batch_size": self.cfg.batch_size}
        extra = {TOKENIZER_FILE: self.pipeline.tokenizer.to_bytes()}
        self.checkpoints.save(step, _items(state), manifest, extra_files=extra)

    def stop(self, step: int) -> None:
        """Leaves in good order after a signal."""
        self.checkpoints.wait()
        status = self.signals.status or INTERRUPTED
        raise Stop(f"{self.signals.name}: saved step {step}; the same command goes on", status)

    def conclude(self, state: TrainState, test: Source | None) -> None:
        """Final scores, table and report, unless they stand; and the verdict of `:overfit`."""
        cfg, path = self.cfg, files.join(self.workdir, "report.html")
        if files.exists(path):
            self.line.say(f"already finished: step {cfg.num_steps}; report: {path}")
        else:
            result = Result({}, [], [])
            if test is not None:
                tasks = cfg.eval.tasks
                wanted = any(t.distractors for t in tasks)
                captions = sorted(set(all_captions(self.pipeline.source))) if wanted else []
                with jax.set_mesh(self.prog.mesh):
                    model = self.model(state)
                    result = run_tasks(model, test, tasks, captions=captions, samples=True)
                attempt = drop_after(self.workdir, cfg.num_steps) - 1
                if not any(
                    m["step"] == cfg.num_steps and is_scores(m) for m in read_metrics(self.workdir)
                ):
                    JsonlWriter(self.workdir, attempt).write(cfg.num_steps, result.metrics)
            facts = [
                ("steps", f"{cfg.num_steps:,} of {cfg.batch_size:,} pairs"),
                ("training pairs", f"{self.pipeline.size:,}"),
                ("parameters", f"{program.num_params(self.prog.abstract.params):,}"),
            ]
            scores, seconds = summary.finish(cfg, self.workdir, result, facts)
            self.line.close()
            if scores:
                print(scores)
            print(f"training took {seconds:.0f} s; report: {path}", flush=True)
        if cfg.overfit:
            passed, text = summary.overfit_verdict(read_metrics(self.workdir), cfg.batch_size)
            if not passed:
                raise Stop(text, CHECK_FAILED)
            print(text)

    def test_source(self) -> Source | None:
        """The test split, with each task tried on its first record; None without tasks."""
        if not self.cfg.eval.tasks:
            return None
        source = open_source(self.cfg.data.test, index_dir=index_dir(self.workdir))
        for task in self.cfg.eval.tasks:
            check_task(source, task)
        return source


class Log:
    """Metrics of a step, fetched when the next step is under way, so that nothing waits."""

    def __init__(self, job: Job, writer: JsonlWriter, first: int):
        self._job, self._writer = job, writer
        self.clock = Clock(job.cfg.batch_size, step=first)
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._bad: collections.Counter[str] = collections.Counter()
        self._seen = 0

    def count(self, host: HostBatch) -> None:
        """Takes note of unusable pairs.

        Raises:
            UserError: they are more than the configured share.
        """
        self._bad += host.bad
        self._seen += len(host.arrays["group"])
        share, most = self._bad.total() / self._seen, self._job.cfg.data.max_bad_share
        if share > most and self._seen >= min(BAD_MINIMUM, self._job.pipeline.size):
            reasons = "; ".join(f"{n} x {r}" for r, n in self._bad.most_common(3))
            raise UserError(
                f"config.data.train: {100 * share:.1f} % of the pairs are unusable, more than "
                f"max_bad_share = {100 * most:.1f} % ({reasons}); mend the data or raise it"
            )

    def keep(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Remembers the metrics of `step` until `flush`."""
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Writes what is remembered.

        Raises:
            Stop: too many steps in a row were not finite.
        """
        if self._pending is None:
            return
        step, arrays = self._pending
        self._pending = None
        values: dict[str, float | int] = {k: v.item() for k, v in jax.device_get(arrays).items()}
        values |= {**self.clock.lap(step), "data/skipped": self._bad.total()}
        memory = jax.local_devices()[0].memory_stats()
        if memory and "peak_bytes_in_use" in memory:
            values["device/peak_bytes"] = memory["peak_bytes_in_use"]
        self._writer.write(step, values)
        self._job.line.update(step, values)
        if values["skipped_in_row"] >= self._job.cfg.optim.max_skipped:
            self._job.checkpoints.wait()
            good = max(self._job.checkpoints.steps(), default=None)
            kept = f"step {good} is the last checkpoint" if good else "there is no checkpoint yet"
            raise Stop(
                f"diverged: {values['skipped_in_row']} steps in a row had a non-finite loss "
                f"(now step {step}); {kept}; lower config.optim.learning_rate",
                DIVERGED,
            )


def make_tokenizer(cfg: Config, source: Source, stored: bytes | None) -> Tokenizer:
    """The run's tokenizer, checked against the text tower.

    Raises:
        UserError: ids of the tokenizer do not fit the tower.
    """
    text = cfg.model.text
    tokenizer = build_tokenizer(
        cfg.tokenizer,
        vocab_size=text.vocab_size,
        captions=all_captions(source),
        stored=stored,
    )
    for name in ("eos_id", "pad_id"):
        if getattr(text, name) != getattr(tokenizer, name):
            raise UserError(
                f"config.model.text.{name}: is {getattr(text, name)}, but the tokenizer's is "
                f"{getattr(tokenizer, name)}; set it so"
            )
    return tokenizer


def check_size(cfg: Config, pipeline: Pipeline) -> None:
    """Refuses a batch larger than the data: it would repeat pairs as their own negatives."""
    if pipeline.size < cfg.batch_size:
        raise UserError(
            f"config.batch_size: {cfg.batch_size} is more than the {pipeline.size} training pairs; "
            f"set it to at most {pipeline.size}"
        )


def plan_line(cfg: Config, prog: program.Program, size: int, first: int) -> str:
    """What is about to happen, in one line."""
    examples = cfg.num_steps * cfg.batch_size
    mesh = " x ".join(f"{k} {v}" for k, v in prog.mesh.shape.items())
    return (
        f"{cfg.name}: steps {first:,} to {cfg.num_steps:,} of {cfg.batch_size:,} pairs = "
        f"{examples:,} examples ({examples / size:.1f} epochs of {size:,}), "
        f"{program.num_params(prog.abstract.params):,} parameters, mesh {mesh}, "
        f"{jax.default_backend()}, {cfg.model.dtype}, loss {prog.loss}"
    )


def is_scores(line: dict[str, Any]) -> bool:
    """Whether a line of the metrics holds scores of an evaluation."""
    return any(k.startswith("eval/") for k in line)


@contextlib.contextmanager
def _out_of_memory() -> Iterator[None]:
    """One line instead of the allocator's pages."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        raise UserError(
            "device memory: not enough for this run; lower config.batch_size, set "
            "config.model.remat=full, or raise config.mesh.fsdp"
        ) from e


def _items(state: TrainState) -> dict[str, Any]:
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    items = {k: fields.pop(k) for k in LAYOUT}
    return {**items, "rest": fields}


def _state(items: dict[str, Any]) -> TrainState:
    return TrainState(**{k: items[k] for k in LAYOUT}, **items["rest"])


def _tokenizer_name(cfg: Config) -> str:
    return {"sentencepiece": "tokenizer.model", "clip_bpe": "merges.txt"}.get(
        cfg.tokenizer.kind, "tokenizer.bin"
    )
