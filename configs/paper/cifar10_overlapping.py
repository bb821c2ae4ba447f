"""CIFAR-10, ten workers whose shards overlap: 155,420 examples out of 50,000.

    asyn2f simulate --config=configs/paper/cifar10_overlapping.py:asyn2f \
        --workdir=runs/cifar10_overlapping --config.task.data_dir=DIR

900,000 local steps of ResNet-18 (2e17 FLOP): hours on most accelerators.
Expected (the paper, read off a figure, +- 0.003): asyn2f 0.955, fedavg 0.950, kafl
0.946; `:fixed` 0.924, 0.916, 0.913; `:cosine` 0.950, -, 0.944.
"""

from configs.paper._common import cifar


def get_config(words=""):
    sizes = (15380, 17450, 13990, 10570, 18220, 17190, 19530, 19380, 13620, 10080)
    config = cifar(words, sizes, versions=(500, 600, 27))
    config.task.partition = "overlapping"
    return config
