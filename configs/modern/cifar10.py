"""CIFAR-10 on a hundred intermittently available workers with strong label skew.

    asyn2f simulate --config=configs/modern/cifar10.py:0.1 \
        --workdir=runs/modern_cifar10 --config.task.data_dir=DIR

The number after the colon is the Dirichlet concentration: 0.1 (extreme) or 0.5. Newer
asynchronous papers report 0.5 to 0.85 in this regime. Needs an accelerator.
"""

from asyn2f.config.default import get_config as default


def get_config(alpha="0.1"):
    config = default()
    config.workers = 100
    config.task.dataset = "cifar10"
    config.task.model = "resnet20"
    config.task.normalise = True
    config.task.augment = "crop_flip"
    config.task.partition = "dirichlet"
    config.task.alpha = float(alpha or 0.1)
    config.training.batch_size = 64
    config.timing.min_updates = 10
    config.timing.epochs_per_push = 2
    config.training.schedule = "synchronous"
    config.training.schedule_length = 2000
    config.stop.max_versions = 2000
    # Speeds span 1 : 10; each worker is offline for a tenth of the time; home links.
    config.sim.step_s = (0.05,)
    config.sim.step_spread = 10.0
    config.sim.jitter = 0.2
    config.sim.upload_mbps = 20.0
    config.sim.download_mbps = 100.0
    config.sim.link_spread = 4.0
    config.sim.outage_every_s = 270.0
    config.sim.outage_s = 30.0
    return config
