"""Numbers that a worker withholds: in no frame, log or trace, and no strategy needs
them."""

import contextlib
import json
import re

import numpy as np
import pytest

import asyn2f
from asyn2f import trace
from asyn2f.config import build, schema
from asyn2f.errors import ConfigError, ContractError, WireError
from asyn2f.privacy import NUMBERS
from asyn2f.protocol import messages, wire_format
from asyn2f.serialization import params_sha256
from asyn2f.strategies import BUILDERS, contract
from asyn2f.transport.zmq import ZmqTransport
from tests.contracts.test_carry import OwnRun
from tests.contracts.test_share import listen

BY_NAME = {
    "asyn2f": {"loss", "size", "quality"},
    "fedavg": {"size"},
    "fedprox": {"size"},
    "kafl": {"size"},
}
VARIANTS = [
    *[(builder(), BY_NAME.get(name, set())) for name, builder in BUILDERS.items()],
    (BUILDERS["asyn2f"](aggregate="median", merge="none"), set()),
    (BUILDERS["asyn2f"](aggregate="plain", merge="none"), {"size"}),
    (BUILDERS["asyn2f"](merge="none"), {"loss", "size", "quality"}),
    (BUILDERS["fedbuff"](by_examples=True), {"size"}),
]


@pytest.mark.parametrize(
    ("strategy", "expected"), VARIANTS, ids=lambda x: getattr(x, "name", None)
)
def test_a_strategy_names_exactly_the_numbers_that_change_its_results(
    strategy, expected
):
    assert contract.used(strategy) == strategy.uses == expected


def test_the_contract_finds_a_number_that_is_not_named():
    strategy = BUILDERS["fedavg"]()._replace(uses=frozenset({"loss"}))
    holds = contract.PROPERTIES["no numbers of workers matter but those in uses"]
    with pytest.raises(ContractError, match=r"depends on size .* uses names loss"):
        holds(contract.Subject(strategy))


def test_a_strategy_of_ones_own_is_taken_to_use_all_numbers():
    strategy = asyn2f.Strategy("mine", None, None, None)
    assert strategy.uses == set(NUMBERS)


def config_of(**changes):
    changes = {"workers": 2, "stop__max_versions": 2, "strategy__name": "fedbuff"} | (
        changes
    )
    return asyn2f.default_config(
        task__partition="sizes",
        task__sizes=(137, 211),
        task__quality=(0.625,),
        **changes,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"strategy__name": "asyn2f"},
            "found nothing, but asyn2f needs loss, size, quality of each worker",
        ),
        ({"strategy__name": "fedavg"}, "fedavg needs size"),
        ({"timing__push_at_metric": 0.5}, "push_at_metric needs metric"),
    ],
)
def test_a_strategy_that_needs_what_is_withheld_is_refused_at_once(changes, words):
    config = schema.plain(config_of(privacy__reveal=(), **changes))
    with pytest.raises(ConfigError, match=f"config.privacy.reveal: .*{words}"):
        build.check(config)


def numbers_in(folder):
    """All numbers in the files of text of a folder."""
    texts = [
        path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.suffix in (".json", ".jsonl") and path.name != "config.json"
    ]
    found = re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", " ".join(texts))
    return {float(number) for number in found}


def test_numbers_that_are_withheld_are_nowhere_in_a_run(tmp_path):
    from asyn2f.api.results import write_run

    told, untold = (
        asyn2f.simulate(config_of(privacy__reveal=reveal)) for reveal in (NUMBERS, ())
    )
    secret = {137.0, 211.0, 0.625}
    seen = {}
    for name, run in (("told", told), ("untold", untold)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"run": "r"}))
        write_run(run, tmp_path / name, {})
        seen[name] = numbers_in(tmp_path / name)
    losses = told.result.numbers.loss[told.result.numbers.loss != 0]
    metrics = told.result.numbers.metric[told.result.numbers.metric > 0]
    secret |= {float(x) for x in (*losses, *metrics)} - {1.0}
    assert len(secret & seen["told"]) > 5
    assert not secret & seen["untold"]
    models = (run.result.state.model.params for run in (told, untold))
    assert len({params_sha256(params) for params in models}) == 1


def test_updates_have_neutral_numbers_for_what_is_withheld():
    from asyn2f.runtime.peer import zero_model
    from asyn2f.training.batches import shard_of

    experiment = build.build_experiment(
        schema.plain(config_of(privacy__reveal=("quality",)))
    )
    trainer, shard = experiment.trainer, shard_of(experiment.task, 1)
    state = trainer.start(zero_model(experiment), 1, 211, 0.625)
    state, metrics = trainer.advance(state, shard)
    info = trainer.report(state).info
    assert float(metrics["loss"]) > 0
    found = [float(x) for x in (info.loss, info.metric, info.signal)]
    assert found == [0.0, 0.0, 0.0]
    assert (float(info.num_examples), float(info.quality)) == (1.0, 0.625)
    assert np.asarray(state.num_examples) == 211


def numbers_of(value):
    """All numbers in a message."""
    if isinstance(value, tuple):
        return {number for part in value for number in numbers_of(part)}
    return {float(value)} if isinstance(value, int | float) else set()


def test_numbers_that_are_withheld_are_in_no_frame_and_no_workers_trace(
    tmp_path, monkeypatch
):
    frames = []
    listen(monkeypatch, ZmqTransport, lambda _, *parts: frames.extend(parts))
    experiment = build.build_experiment(schema.plain(config_of(privacy__reveal=())))
    run = OwnRun(tmp_path, experiment, "zmq")
    for number in range(2):
        run.start_worker(number)
    assert run.finish()["versions"] == 2
    sent = []
    for frame in frames:
        with contextlib.suppress(WireError):  # topics and payloads
            sent.append(wire_format.decode(frame))
    kinds = {type(message) for message in sent}
    assert kinds >= {messages.Hello, messages.Heartbeat, messages.UpdateHeader}
    for message in sent:
        assert not {137.0, 211.0, 348.0, 0.625} & numbers_of(message), message
        match message:
            case messages.UpdateHeader():
                info = message.info
                shown = info.num_examples, info.loss, info.quality, info.metric
                assert (*shown, info.signal) == (1.0, 0.0, 1.0, 0.0, 0.0)
            case messages.Heartbeat():
                progress = message.progress
                assert (progress.loss, progress.metric, progress.epoch) == (0, 0, 0)
    trained = [e for e in trace.of_run(tmp_path) if isinstance(e, trace.Trained)]
    assert {(e.loss, e.metric) for e in trained} == {(0.0, 0.0)}
    assert max(e.steps for e in trained) >= 211 // experiment.training.batch_size


def test_a_report_says_what_is_withheld(tmp_path):
    run = asyn2f.simulate(config_of(privacy__reveal=("metric", "scores")))
    page = run.report(tmp_path / "report.html").read_text("utf-8")
    assert "The workers withhold loss, size, quality (config.privacy.reveal)" in page
    told = asyn2f.simulate(config_of()).report(tmp_path / "told.html")
    assert "withhold" not in told.read_text("utf-8")
