"""Fifty intermittently available workers with strong label skew; a minute on a laptop.

    asyn2f simulate --config=configs/modern/digits.py:0.1 \
        --workdir=runs/modern_digits

The number after the colon is the Dirichlet concentration: 0.1 (extreme) or 0.5.
"""

from asyn2f.config.default import get_config as default


def get_config(alpha="0.1"):
    config = default()
    config.workers = 50
    config.task.hidden = (64,)
    config.task.partition = "dirichlet"
    config.task.alpha = float(alpha or 0.1)
    config.training.batch_size = 16
    config.strategy.asyn2f.max_share = 0.5
    config.timing.min_updates = 10
    config.timing.epochs_per_push = 2
    config.training.schedule = "synchronous"
    config.training.schedule_length = 500
    config.stop.max_versions = 500
    config.sim.step_s = (0.01,)
    config.sim.step_spread = 10.0
    config.sim.jitter = 0.2
    config.sim.link_spread = 4.0
    config.sim.upload_mbps = 20.0
    config.sim.download_mbps = 100.0
    config.sim.outage_every_s = 9.0
    config.sim.outage_s = 1.0
    return config
