"""The worker's process: interprets the worker's program with JAX and a protocol."""

import logging
import time

import jax
import jax.numpy as jnp

from asyn2f import programs, serialization, trace
from asyn2f.errors import WireError
from asyn2f.programs import Seen
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.own_state import OwnState
from asyn2f.runtime.pace import Pace
from asyn2f.runtime.peer import (
    Ended,
    ModelInbox,
    PeerClient,
    Token,
    decode_model,
    hello_of,
    no_token,
    zero_model,
)
from asyn2f.runtime.scoring import DEPTH, Scoring
from asyn2f.store.worker_state import WorkerStateFile
from asyn2f.training.batches import shard_of, steps_per_epoch
from asyn2f.training.experiment import Experiment, registered, stage
from asyn2f.transport.base import Transport
from asyn2f.types import GlobalModel, UpdateInfo, WorkerState


class Worker:
    """One worker: joins, trains, merges and pushes until the run is over."""

    depth = 1  # versions that may wait: newest wins

    def __init__(
        self,
        experiment: Experiment,
        worker: int,
        settings: RuntimeSettings,
        journal: Journal,
        own: WorkerStateFile | None = None,
    ) -> None:
        """Compiles everything. `own`: where it keeps its carry and its part of the
        model for a restart. Raises ValueError if there is no such shard."""
        self._experiment, self._trainer = experiment, experiment.trainer
        self._worker, self._journal, self._settings = worker, journal, settings
        self._own, self._run = OwnState(own, worker, journal), ""  # see `_receive`
        self._scoring = Scoring(experiment, worker, journal)
        self._shard = shard_of(experiment.task, worker)
        self._num_examples = int(self._shard.num_examples)
        self._reveals_size = "size" in experiment.reveal
        self._quality = float(jnp.float32(experiment.task.qualities[worker]))
        batch_size = experiment.training.batch_size
        self._epoch_steps = steps_per_epoch(self._num_examples, batch_size)
        self._pace = Pace(settings.worker_speeds[worker % len(settings.worker_speeds)])
        self._state: WorkerState | None = None
        # The newest version and its incarnation; None once it has been taken in, unless
        # it may be adopted again.
        self._fresh: tuple[GlobalModel, int] | None = None
        self._fresh_digest = self._base_digest = ""  # of its payload, of the base's
        self._adopts_again = experiment.strategy.timing.after_push == "adopt"
        self._newest, self._base = -1, 0  # newest valid version received; last taken in
        self._newest_from = self._base_from = -1  # its incarnation, and the base's
        self._merges, self._merged_s = 0, 0.0  # their number; time of the last, if any
        self._inbox = ModelInbox(self.depth, DEPTH if self._scoring.rows else 0)
        with stage(experiment, "train", 0, worker):
            self._warm_up()

    def stop(self, reason: str) -> None:
        """Ends the worker at its next batch boundary; from any thread."""
        self._inbox.stop(reason)

    def run(
        self, transport: Transport, terms: tuple[str, ...], token: Token = no_token
    ) -> Ended:
        """Joins, and works until the run is over, or this process is stopped or
        refused. `terms`: of `agreement.terms_of`; `token`: of the run, without keys."""
        worker, rows = self._worker, self._scoring.rows
        own = registered(self._experiment)[worker]
        hello = hello_of(self._experiment, terms, "worker", worker, *own, rows)
        self._client = PeerClient(
            hello, self._settings, transport, self._journal, self._inbox, token
        )
        self._client.start()
        timing = self._experiment.strategy.timing
        program = programs.worker_program(timing, self._epoch_steps)
        command = next(program)
        try:
            while True:
                command = program.send(self._carry_out(command))
        except StopIteration:
            return self._client.leave()

    # ------------------------------------------------------------- commands

    def _carry_out(self, command: programs.WorkerCommand) -> Seen:
        steps, name = 0, type(command).__name__.lower()
        with stage(self._experiment, name, self._base, self._worker):
            match command:
                case programs.Wait(known):
                    self._wait(known)
                case programs.Adopt():
                    self._adopt()
                case programs.Train(wanted, known):
                    steps = self._train(wanted, known)
                case programs.Merge():
                    self._merge()
                case programs.Push():
                    self._push()
            stopped = self._inbox.stopped is not None
            signal = self._signal()
        self._receive()
        return Seen(steps, self._newest, signal, stopped, self._pace.step_s)

    def _signal(self) -> float:
        """The signal; read from the device only if a push may depend on it."""
        depends = self._experiment.strategy.timing.depends_on_values
        if self._state is None or not depends:
            return 0.0
        return float(self._trainer.report(self._state).info.signal)

    def _receive(self) -> None:
        """Decodes the newest version received; an invalid one is dropped."""
        self._scoring.catch_up(self._inbox, self._state, self._client.post)
        received = self._inbox.take()
        if received is not None:
            try:
                model = decode_model(self._experiment, received)
                header = received.header
                self._fresh, self._run = (model, header.incarnation), header.run
                self._fresh_digest = header.digest
                self._newest, self._newest_from = header.version, header.incarnation
            except WireError as error:
                logging.warning("worker %d: dropped a version: %s", self._worker, error)

    def _wait(self, known: int) -> None:
        start_s = time.monotonic()
        self._report_progress("waiting")
        self._receive()
        while self._is_known(known) and self._inbox.stopped is None:
            self._inbox.wait()
            self._receive()
        if self._state is not None:
            now, newest = time.monotonic(), self._newest
            self._journal.write(trace.Blocked(now, self._worker, start_s, newest))

    def _is_known(self, known: int) -> bool:
        """Whether the newest version is that one, of the same incarnation: a version of
        that number may have been lost in a crash, and replaced."""
        return self._newest == known and self._newest_from == self._base_from

    def _adopt(self) -> None:
        model, incarnation = self._take_fresh()
        restored = ""
        if self._state is None:
            self._state = self._trainer.start(
                model, self._worker, self._num_examples, self._quality
            )
            self._state, restored = self._own.restored(self._run, self._state)
        else:
            self._state = self._trainer.adopt(self._state, model)
        self._journal.write(
            trace.Adopted(
                time_s=time.monotonic(),
                worker=self._worker,
                version=self._base,
                step=int(self._state.step),
                incarnation=incarnation,
                restored=restored,
            )
        )

    def _take_fresh(self) -> tuple[GlobalModel, int]:
        assert self._fresh is not None
        fresh = self._fresh
        self._base_from = fresh[1]
        self._base, self._base_digest = int(fresh[0].version), self._fresh_digest
        if not self._adopts_again:
            self._fresh = None
        return fresh

    def _train(self, wanted: int, known: int | None) -> int:
        assert self._state is not None
        start_s = due_s = reported_s = time.monotonic()
        done = 0
        while done < wanted:
            self._state, metrics = self._trainer.advance(self._state, self._shard)
            done += 1
            # Otherwise the host would run ahead of the device.
            jax.block_until_ready(metrics)
            self._scoring.catch_up(self._inbox, self._state, self._client.post)
            if self._pace.limit_s:
                due_s += self._pace.limit_s
                self._inbox.wait_stopped(due_s - time.monotonic())
            if self._inbox.stopped is not None:
                break
            if time.monotonic() > reported_s + self._settings.heartbeat_interval_s:
                self._report_progress("training")  # slow is not the same as hung
                reported_s = time.monotonic()
            if known is not None and self._inbox.newest != known:
                break
        self._pace.add(start_s, done)
        info = serialization.to_numbers(self._trainer.report(self._state).info)
        self._journal.write(
            trace.Trained(
                time_s=time.monotonic(),
                worker=self._worker,
                start_s=start_s,
                steps=done,
                step=info.step,
                base_version=info.base_version,
                loss=info.loss,
                metric=info.metric,
            )
        )
        self._report_progress("training", info)
        return done

    def _merge(self) -> None:
        assert self._state is not None
        model, incarnation = self._take_fresh()
        before, step = int(self._state.base_version), int(self._state.step)
        self._state, metrics = self._trainer.merge(self._state, model)
        share = float(metrics["share"])
        self._merges += 1
        self._merged_s = time.monotonic()
        self._journal.write(
            trace.Merged(
                time_s=self._merged_s,
                worker=self._worker,
                version=self._base,
                from_version=before,
                step=step,
                epoch_fraction=self._epochs(step % self._epoch_steps),
                share=share,
                incarnation=incarnation,
            )
        )

    def _push(self) -> None:
        assert self._state is not None
        self._pace.end_cycle()
        update, self._state = self._trainer.push(self._state)
        self._own.keep(self._run, self._state)
        payload = serialization.encode_params(update.params)
        sent = wire_format.compress(payload) if self._settings.zstd else payload
        needs_base = self._experiment.update_needs_base
        self._client.post(
            p.UpdateReady(
                info=serialization.to_numbers(update.info),
                fingerprint=self._experiment.update_template.fingerprint,
                num_bytes=len(payload),
                digest=serialization.digest(payload),
                payload=sent,
                time_s=time.monotonic(),
                base=self._base_digest if needs_base else "",
            )
        )

    def _report_progress(
        self, state: str, info: UpdateInfo[int, float] | None = None
    ) -> None:
        if self._state is None:
            return
        if info is None:
            info = serialization.to_numbers(self._trainer.report(self._state).info)
        ago_s = time.monotonic() - self._merged_s if self._merges else -1.0
        self._client.post(
            messages.WorkerProgress(
                state=state,
                step=info.step,
                epoch=self._epochs(info.step),
                loss=info.loss,
                metric=info.metric,
                base_version=info.base_version,
                merges=self._merges,
                merged_s_ago=ago_s,
            )
        )

    def _epochs(self, steps: int) -> float:
        """Steps as epochs, if the size of the shard may be known."""
        return steps / self._epoch_steps if self._reveals_size else 0.0

    def _warm_up(self) -> None:
        """Runs every function once, on zeros."""
        trainer, shard = self._trainer, self._shard
        model = zero_model(self._experiment)
        state = trainer.start(model, self._worker, self._num_examples, self._quality)
        state, _ = trainer.advance(state, shard)
        if self._experiment.strategy.timing.seconds_per_push:
            state = self._pace.measure(lambda x: trainer.advance(x, shard)[0], state)
        state, _ = trainer.merge(state, model)
        jax.block_until_ready(trainer.report(trainer.adopt(state, model)))
