"""Twenty workers whose speeds span 1 : 10: the experiment of the comparisons.

    asyn2f compare --config=configs/twenty.py:digits --strategies=all \
        --seeds=5 --trials=6 --workdir=runs/twenty_digits

`:digits`, or `:mnist` as prepared by tensorflow-datasets (see task.data_dir); the split
is Dirichlet(0.3) unless --config.task.partition=iid is given.
"""

from asyn2f.config.default import get_config as default


def get_config(dataset="digits"):
    config = default()
    config.workers = 20
    config.task.dataset = dataset
    config.task.hidden = (64,)
    config.task.partition = "dirichlet"
    config.task.alpha = 0.3
    config.training.weight_decay = 0.0
    config.timing.epochs_per_push = 1
    # The fastest worker computes 100 steps/s, the slowest 10; links as of a home.
    config.sim.step_s = (0.01,)
    config.sim.step_spread = 10.0
    config.sim.jitter = 0.1
    config.sim.upload_s = config.sim.download_s = 0.02
    config.sim.upload_mbps = 20.0
    config.sim.download_mbps = 100.0
    config.stop.max_versions = 0
    config.stop.max_time_s = 20.0 if dataset == "digits" else 60.0
    return config
