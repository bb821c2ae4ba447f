"""A server's computations: validates updates, and aggregates them into versions."""

import logging
import time
from collections import OrderedDict, deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f import failpoints, serialization, trace
from asyn2f.errors import StoreError, WireError
from asyn2f.kernels import codecs, guards
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, wire_format
from asyn2f.store.base import ModelStore, Record
from asyn2f.strategies.base import push_params
from asyn2f.training.experiment import Experiment, initial_server_state, stage
from asyn2f.types import Buffer, Metrics, Params, ServerState, UpdateInfo, WorkerUpdate

_SUM_TO_1_WITHIN = 1e-4  # coefficients are float32
_CACHED_BASES = 8  # in memory; older ones are read from the store

_I32: Any = np.int32


class PendingUpdate(NamedTuple):
    """A valid update that has not been settled."""

    header: messages.UpdateHeader
    update: WorkerUpdate
    finding: str  # of the norm guard in the mode "observe"; or ""


class Aggregation(NamedTuple):
    """A new version, and the event of its creation."""

    version: p.VersionAggregated
    event: trace.Aggregated


class Aggregator:
    """The newest state of the server, and the updates for the next one."""

    def __init__(
        self,
        experiment: Experiment,
        store: ModelStore,
        state: ServerState,
        *,
        run: str,
        incarnation: int,
        zstd: bool = False,
    ) -> None:
        """
        Args:
          experiment: of the run.
          store: read where an update is a delta against an older version.
          state: to begin with.
          run, incarnation: of the headers and records of the versions.
          zstd: compress versions that are published.
        """
        self.experiment = experiment
        self.state = state
        self.pending: dict[UpdateKey, PendingUpdate] = {}
        self.guarded = 0  # updates that a guard rejected or reported
        self._run = run
        self._incarnation = incarnation
        self._zstd = zstd
        self._bases = BaseCache(experiment, store)
        self._accepted: deque[float] = deque(maxlen=guards.REMEMBERED)  # distances

    def warm_up(self) -> None:
        """Compiles the aggregation."""
        params = jax.device_get(self.state.model.params)
        info = UpdateInfo(0, 0, 0, num_examples=1.0, loss=1.0, quality=1.0, metric=0.0)
        update = WorkerUpdate(
            params=serialization.to_device(params),
            worker=_I32(0),
            info=serialization.to_scalars(info),
        )
        with stage(self.experiment, "aggregate", 0):
            jax.block_until_ready(self.experiment.aggregate(self.state, [update]))

    def validate(
        self, key: UpdateKey, header: messages.UpdateHeader, payload: Buffer
    ) -> str:
        """Decodes an update and keeps it until `drop`; returns why it is invalid, or
        ""."""
        template = self.experiment.update_template
        try:
            payload = wire_format.decompress(header, payload, template)
            coded = serialization.decode_params(template, payload)
            params = self._decode(header, coded)
        except WireError as error:
            return str(error)
        bad = serialization.nonfinite_leaf(params)
        if bad:
            return f"{bad} is not finite: has training diverged?"
        finding = self._check_norm(key, params)
        if finding and self.experiment.guards.mode == "enforce":
            self.guarded += 1
            return finding
        update = WorkerUpdate(
            params=params,
            worker=_I32(header.worker),
            info=serialization.to_scalars(header.info),
        )
        self.pending[key] = PendingUpdate(
            header, update, finding and f"would be rejected: {finding}"
        )
        failpoints.reach("checked")
        return ""

    def drop(self, key: UpdateKey) -> None:
        """Forgets an update that has been settled."""
        self.pending.pop(key, None)

    def aggregate(
        self, version: int, keys: tuple[UpdateKey, ...], lacking: int
    ) -> Aggregation | p.AggregationFailed:
        """Aggregates updates into the next version; keeps the present one if the result
        is invalid. `lacking`: see `programs.Aggregate`."""
        members = [self.pending[key] for key in keys]
        with stage(self.experiment, "aggregate", version):
            state, metrics = self.experiment.aggregate(
                self.state, [member.update for member in members]
            )
        problem = problem_of(state, metrics)
        if problem:
            logging.warning("version %d is not created: %s", version, problem)
            return p.AggregationFailed(version, problem)
        self.state = state
        shares = [float(x) for x in metrics["coefficients"]]
        event = trace.Aggregated(
            time_s=time.monotonic(),
            version=version,
            incarnation=self._incarnation,
            updates=[list(key) for key in keys],
            base_versions=[member.header.info.base_version for member in members],
            staleness=[int(x) for x in metrics["staleness"]],
            coefficients=shares,
            learning_rate=float(state.model.learning_rate),
            guards=self._findings(members, shares),
            lacking=lacking,
        )
        return Aggregation(self.encoded(), event)

    def encoded(self) -> p.VersionAggregated:
        """The present version, ready to be published."""
        model = self.state.model
        coded = self.experiment.publication.encode(model.params)
        payload = serialization.encode_params(coded)
        digest = serialization.digest(payload)
        if self.experiment.update_needs_base:
            self._bases.keep(digest, coded)
        header = messages.ModelHeader(
            run=self._run,
            incarnation=self._incarnation,
            version=int(model.version),
            num_examples=float(model.num_examples),
            loss=float(model.loss),
            quality=float(model.quality),
            learning_rate=float(model.learning_rate),
            fingerprint=self.experiment.publication.template.fingerprint,
            num_bytes=len(payload),
            digest=digest,
        )
        return p.VersionAggregated(
            header, wire_format.compress(payload) if self._zstd else payload
        )

    def record(self, aggregated: dict[str, Any]) -> Record:
        """What the store keeps beside the arrays of the present version."""
        version = int(self.state.model.version)
        return {
            "run": self._run,
            "incarnation": self._incarnation,
            "version": version,
            "parent": version - 1,
            "aggregated": aggregated,
        }

    def _decode(self, header: messages.UpdateHeader, coded: Any) -> Params:
        """The params of an update.

        Raises:
          WireError: no worker would send this, or its base version is not available.
        """
        problem = codecs.problem_of(coded, self.experiment.template.sizes)
        if problem:
            raise WireError(problem)
        base: Params = ()
        if self.experiment.update_needs_base:
            base = self._bases.find(header.info.base_version, header.base)
            if base is None:
                raise WireError(
                    f"a change since version {header.info.base_version}, which is not "
                    "here any more: keep more with config.runtime.keep_last"
                )
        return self.experiment.trainer.decode(serialization.to_device(coded), base)

    def _check_norm(self, key: UpdateKey, params: Params) -> str:
        """What the norm guard finds, or "". A replay does not repeat this: the trace
        names the updates that were rejected."""
        settings = self.experiment.guards
        if settings.mode == "off":
            return ""
        model = self.state.model.params
        is_difference = self.experiment.strategy.push is not push_params
        far = float(guards.distance(params, model, is_difference=is_difference))
        size, factor = float(guards.size_of(model)), settings.max_norm_ratio
        limit = guards.norm_limit(self._accepted, size, factor)
        if far <= limit:
            self._accepted.append(far)
            return ""
        problem = guards.too_far(far, limit)
        logging.warning("update %s: %s", key, problem)
        return problem

    def _findings(self, members: list[PendingUpdate], shares: list[float]) -> list[str]:
        """What the guards found, as in `trace.Aggregated`."""
        losses = [member.header.info.loss for member in members]
        found = guards.findings(self.experiment.guards, losses, shares)
        far = [member.finding for member in members]
        both = zip(far, found or [""] * len(members), strict=True)
        lines = ["; ".join(filter(None, pair)) for pair in both]
        self.guarded += sum(map(bool, lines))
        return lines if any(lines) else []


def problem_of(state: ServerState, metrics: Metrics) -> str:
    """Why an aggregation is invalid, or "": finite updates can have a result that is
    not finite."""
    bad = serialization.nonfinite_leaf(state)
    if bad:
        return f"{bad} is not finite after the aggregation"
    shares = np.asarray(metrics["coefficients"])
    if not (shares.min() >= 0 and abs(shares.sum() - 1) < _SUM_TO_1_WITHIN):
        return f"the coefficients are {shares.tolist()}: no shares of 1"
    return ""


class BaseCache:
    """Published versions by the digest of their payload, to decode delta updates.

    By digest, not by number: after a crash there may be two versions of one number, and
    a delta against one must not be added to the other.
    """

    def __init__(self, experiment: Experiment, store: ModelStore) -> None:
        self._publication = experiment.publication
        self._shapes = jax.eval_shape(lambda: initial_server_state(experiment))
        self._store = store
        self._cached: OrderedDict[str, Params] = OrderedDict()

    def keep(self, digest: str, coded: Any) -> None:
        """Adds a version in its published form, by its payload's digest."""
        self._cached[digest] = self._publication.decode(coded)
        if len(self._cached) > _CACHED_BASES:
            self._cached.popitem(last=False)

    def find(self, version: int, digest: str) -> Params | None:
        """A version as its workers saw it; None if it is neither cached nor in the
        store, or if the store has another one of this number."""
        if digest not in self._cached:
            try:
                state, _ = self._store.load(version, self._shapes)
            except StoreError:
                return None
            params = jax.tree.map(jnp.asarray, state.model.params)
            coded = self._publication.encode(params)
            self.keep(serialization.digest(serialization.encode_params(coded)), coded)
        return self._cached.get(digest)
