"""Asyn2F on handwritten digits: five workers, speeds 1 : 4, label-skewed data.

    asyn2f run --config=digits --workdir=runs/digits

About 40 seconds on two cores; best test accuracy 0.96 to 0.97. `max_share` departs from
the paper: without it (--config.strategy.asyn2f.max_share=1) a worker with few examples,
which soon reports a loss near zero, outweighs all others, and 0.94 to 0.96 is reached.
"""

from ml_collections import ConfigDict

from asyn2f.config.default import get_config as default


def get_config() -> ConfigDict:
    """The experiment that programs run unless `--config` is given."""
    config = default()
    config.task.hidden = (64,)
    config.task.partition = "dirichlet"
    config.task.alpha = 1.0
    config.strategy.asyn2f.max_share = 0.5
    config.timing.min_updates = 3
    config.timing.epochs_per_push = 2
    config.training.schedule = "synchronous"
    config.training.schedule_length = 150
    config.stop.max_versions = 150
    config.worker_speeds = (120.0, 90.0, 60.0, 45.0, 30.0)
    return config
