"""CIFAR-10, ten workers, the paper's "non-IID": other sizes, little label skew.

    asyn2f simulate --config=configs/paper/cifar10_noniid.py:asyn2f \
        --workdir=runs/cifar10_noniid --config.task.data_dir=DIR

300,000 local steps of ResNet-18 (6e16 FLOP): hours on most accelerators.
The paper's class shares of 9 to 11 % are those of random shards of these sizes, which
use every example; the split here draws such shards. Expected: no number is published.
"""

from configs.paper._common import cifar


def get_config(words=""):
    sizes = (6483, 6404, 5758, 5589, 4832, 3990, 4050, 3531, 3443, 5920)
    config = cifar(words, sizes, versions=(500, 600, 27))
    config.task.partition = "sizes"
    return config
