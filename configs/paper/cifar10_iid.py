"""CIFAR-10, ten workers with disjoint random shards; 700 versions of asyn2f.

    asyn2f simulate --config=configs/paper/cifar10_iid.py:asyn2f \
        --workdir=runs/cifar10_iid --config.task.data_dir=DIR

410,000 local steps of ResNet-18 (9e16 FLOP): hours on most accelerators.
Expected: no number is published for this split.
"""

from configs.paper._common import cifar


def get_config(words=""):
    sizes = (6800, 6630, 5990, 5380, 5340, 4420, 4350, 3900, 3820, 3370)
    config = cifar(words, sizes, versions=(700, 1100, 45))
    config.task.partition = "sizes"
    return config
