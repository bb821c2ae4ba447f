"""The order in which trials are given to processes."""

from asyn2f.cli.trials import Job, in_turns
from tests.support.experiments import config_with


def job(method, seed, **settings):
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    config = config_with(seed=seed, strategy__name=method)
    return Job(dict(config), settings, "choice", None, "")


def test_trials_of_one_program_go_to_one_process():
    jobs = [
        job("asyn2f", seed, strategy__asyn2f__max_share=share)
        for share in (0.25, 0.5, 1.0)
        for seed in (0, 1)
    ]
    turns = in_turns(jobs, 2)
    first, second = turns[:4:2], turns[1:4:2]
    assert [x.config["seed"] for x in first] == [x.config["seed"] for x in second]
    assert len({str(x.settings) for x in first}) == 1
    assert len({str(x.settings) for x in second}) == 1
    assert turns[4:] == jobs[4:]


def test_a_learning_rate_is_an_argument_of_a_program():
    jobs = [job("kafl", 0, training__learning_rate=rate) for rate in (0.1, 0.2)]
    other = job("fedavg", 0)
    assert in_turns([*jobs, other], 2) == [jobs[0], other, jobs[1]]


def test_none_is_lost():
    jobs = [job("fedbuff", seed, k=k % 3) for k in range(7) for seed in range(k)]
    turns = in_turns(jobs, 3)
    assert len(turns) == len(jobs)
    assert all(each in turns for each in jobs)
