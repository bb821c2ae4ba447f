"""The overlapping CIFAR-10 experiment, small enough for two cores.

    asyn2f simulate --config=configs/paper/cifar10_small.py:asyn2f \
        --workdir=runs/cifar10_small --config.task.data_dir=DIR

A tenth of each shard, a network of three convolutions with batch normalisation, batch
64, one epoch per push, three tenths of the versions (150 of asyn2f): seven minutes on
two cores. Measured with seed 0, 150 versions of every method and a deadline of 15 s
(none is set now): asyn2f 0.43 and kafl 0.46, both after 101 virtual seconds; fedavg
0.29 after 80, and 0.59 after its 150 rounds of 1,227 s in all. The network has not
converged by then.
"""

from configs.paper._common import cifar


def get_config(words=""):
    sizes = (1538, 1745, 1399, 1057, 1822, 1719, 1953, 1938, 1362, 1008)
    config = cifar(words, sizes, versions=(150, 180, 8))
    config.task.partition = "overlapping"
    config.task.model = "cnn"
    config.task.channels = (16, 32, 32)
    config.task.batch_norm = True
    config.training.batch_size = 64
    config.timing.epochs_per_push = 1
    config.sim.evaluate_every = 10
    return config
