"""CIFAR-10, twenty workers with about 2,500 examples each; ten updates per version.

    asyn2f simulate --config=configs/paper/cifar10_20_workers.py:asyn2f \
        --workdir=runs/cifar10_20_workers --config.task.data_dir=DIR

1,000,000 local steps of ResNet-18 (2e17 FLOP): hours on most accelerators.
Expected (the paper): 0.853 after about three hours of its workers' time.
"""

from configs.paper._common import cifar


def get_config(words=""):
    config = cifar(words, (2500,) * 20, versions=(1000, 1200, 60))
    config.task.partition = "sizes"
    config.timing.min_updates = 10
    return config
