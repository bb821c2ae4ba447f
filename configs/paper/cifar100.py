"""CIFAR-100, ten workers with disjoint random shards, ResNet-20.

    asyn2f simulate --config=configs/paper/cifar100.py:asyn2f \
        --workdir=runs/cifar100 --config.task.data_dir=DIR

410,000 local steps of ResNet-20 (6e15 FLOP). Expected: no number is published.
"""

from configs.paper._common import cifar


def get_config(words=""):
    sizes = (5800, 5600, 5600, 5400, 5100, 5000, 5000, 4500, 4100, 3900)
    config = cifar(words, sizes, versions=(700, 1100, 45))
    config.task.dataset = "cifar100"
    config.task.model = "resnet20"
    config.task.partition = "sizes"
    return config
