"""run(cfg, workdir): mesh, data, state, loop, evaluation, checkpoints. One screen a phase.

Side effects all live here: files of the workdir, the terminal, signals. The order is fixed:
lock, config, data, program, start state, compile, loop, final evaluation, report.
"""

import collections
import contextlib
import dataclasses
import sys
from typing import Any

import jax

from clip_jax import files
from clip_jax.checkpoint.lock import WorkdirLock, hold
from clip_jax.checkpoint.manager import Checkpoints
from clip_jax.config import load
from clip_jax.config.schema import Config
from clip_jax.data.feed import feed, host_rows
from clip_jax.data.pipeline import HostBatch, Pipeline
from clip_jax.data.sources import Source, open_source
from clip_jax.errors import CHECK_FAILED, DIVERGED, INTERRUPTED, Stop, UserError
from clip_jax.eval.run import Result, run_tasks
from clip_jax.inference.api import TOKENIZER_FILE, Model
from clip_jax.metrics.clock import Clock
from clip_jax.metrics.writers import JsonlWriter, LiveLine, drop_after, read_metrics
from clip_jax.sharding.mesh import make_mesh
from clip_jax.tokenizers import Tokenizer
from clip_jax.tokenizers import build as build_tokenizer
from clip_jax.train import program, start, summary
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
    load.checked(cfg)
    mesh = make_mesh(cfg.mesh)
    prog = program.build(cfg, mesh)
    with contextlib.ExitStack() as stack:
        line = LiveLine(cfg.num_steps, sys.stdout)
        stack.callback(line.close)
        lock = stack.enter_context(hold(workdir, line.say))
        signals = stack.enter_context(Signals())
        _accept_config(cfg, workdir, accept_changes, line)
        source = open_train_source(cfg, workdir)
        checkpoints = Checkpoints(workdir, keep=cfg.checkpoint.keep)
        stack.callback(checkpoints.close)
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
        files.write_bytes(files.join(workdir, _tokenizer_name(cfg)), tokenizer.to_bytes())
        job = Job(cfg, workdir, prog, pipeline, checkpoints, lock, signals, line, order)
        if first >= cfg.num_steps:
            report = files.join(workdir, "report.html")
            if not files.exists(report):
                job.report_again(state)
            line.say(f"already finished: step {first} of {cfg.num_steps}; report: {report}")
            return state
        return job.train(state, first, position)


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

    def train(self, state: TrainState, first: int, position: int) -> TrainState:
        """From step `first` to the end."""
        cfg, prog = self.cfg, self.prog
        self.line.say(plan_line(cfg, prog, self.pipeline.size, first))
        execute = prog.compile()
        self.line.say(program.memory_line(execute))
        writer = JsonlWriter(self.workdir, attempt=drop_after(self.workdir, first))
        log = Log(self, writer, first)
        test = self._test()
        batches = self.pipeline.batches(
            start=position,
            batch_size=cfg.batch_size,
            num_steps=cfg.num_steps - first,
            rows=host_rows(cfg.batch_size, prog.mesh),
        )
        stream = feed(batches, prog.mesh)
        result = Result({}, [], [])
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
                evaluate = test is not None and (
                    last or (cfg.eval.every and step % cfg.eval.every == 0)
                )
                save = last or step % cfg.checkpoint.every == 0 or self.signals.status is not None
                if evaluate or save:
                    log.flush()
                with log.clock.paused():
                    if evaluate and test is not None:
                        result = self.evaluate(state, test, final=last)
                        writer.write(step, result.metrics)
                    if save:
                        self.save(step, state, position)
                if self.signals.status is not None and not last:
                    self.stop(step)
        self.checkpoints.wait()
        self.finish(result)
        return state

    def report_again(self, state: TrainState) -> None:
        """Evaluates and reports a run that was killed after its last checkpoint."""
        test = self._test()
        with jax.set_mesh(self.prog.mesh):
            self.finish(self.evaluate(state, test, final=True) if test else Result({}, [], []))

    def evaluate(self, state: TrainState, test: Source, *, final: bool) -> Result:
        """Zero-shot scores of the current parameters; the last one also picks samples."""
        model = Model(
            self.cfg,
            state.params,
            self.pipeline.tokenizer,
            self.prog.mesh,
            self.cfg.eval.batch_size,
        )
        tasks = self.cfg.eval.tasks
        captions: list[str] = []
        if final and any(t.distractors for t in tasks):
            captions = sorted(set(training_captions(self.pipeline.source, self.pipeline.size)))
        result = run_tasks(model, test, tasks, captions=captions, samples=final)
        scores = [f"{k.removeprefix('eval/')} {100 * v:.1f} %" for k, v in result.metrics.items()
                  if "/top" in k]  # fmt: skip
        if not final:
            self.line.say(f"step {int(jax.device_get(state.step))}: {', '.join(scores)}")
        return result

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

    def finish(self, result: Result) -> None:
        """Table, report, and the verdict of an overfit check."""
        cfg = self.cfg
        facts = [
            ("steps", f"{cfg.num_steps:,} of {cfg.batch_size:,} pairs"),
            ("training pairs", f"{self.pipeline.size:,}"),
            ("parameters", f"{program.num_params(self.prog.abstract.params):,}"),
        ]
        path, scores, seconds = summary.finish(cfg, self.workdir, result, facts)
        self.line.close()
        if scores:
            print(scores)
        print(f"training took {seconds:.0f} s; report: {path}", flush=True)
        if cfg.overfit:
            lines = [m for m in read_metrics(self.workdir) if "loss" in m]
            passed, text = summary.overfit_verdict(lines)
            if not passed:
                raise Stop(text, CHECK_FAILED)
            print(text)

    def _test(self) -> Source | None:
        if not self.cfg.eval.tasks:
            return None
        return open_source(self.cfg.data.test, index_dir=index_dir(self.workdir))


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


def open_train_source(cfg: Config, workdir: str) -> Source:
    """The training pairs."""
    return open_source(cfg.data.train, index_dir=index_dir(workdir))


def index_dir(workdir: str) -> str:
    """Folder for indexes of shards that lie in a read-only place; '' for a remote workdir."""
    return "" if files.is_remote(workdir) else files.join(workdir, "index")


def training_captions(source: Source, size: int) -> Any:
    """All captions of the first `size` records, in their order."""
    for i in range(size):
        yield from source.texts(i)


def make_tokenizer(cfg: Config, source: Source, stored: bytes | None) -> Tokenizer:
    """The run's tokenizer, checked against the text tower.

    Raises:
        UserError: ids of the tokenizer do not fit the tower.
    """
    text = cfg.model.text
    size = min(len(source), cfg.data.limit or len(source))
    tokenizer = build_tokenizer(
        cfg.tokenizer,
        vocab_size=text.vocab_size,
        captions=training_captions(source, size),
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
        f"{jax.default_backend()}, {cfg.model.dtype}"
    )


def _accept_config(cfg: Config, workdir: str, accept_changes: bool, line: LiveLine) -> None:
    if files.exists(start.config_path(workdir)):
        for text in start.check_same_run(start.read_config(workdir), cfg, accept_changes):
            line.say(f"changed: {text}")
    start.write_config(workdir, cfg)


def _items(state: TrainState) -> dict[str, Any]:
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    items = {k: fields.pop(k) for k in LAYOUT}
    return {**items, "rest": fields}


def _state(items: dict[str, Any]) -> TrainState:
    return TrainState(**{k: items[k] for k in LAYOUT}, **items["rest"])


def _tokenizer_name(cfg: Config) -> str:
    return {"sentencepiece": "tokenizer.model", "clip_bpe": "merges.txt.gz"}.get(
        cfg.tokenizer.kind, "tokenizer.bin"
    )
