"""Settings that the experiments of the paper share.

Each config takes words after a colon, in any order: a method (asyn2f, kafl, fedavg) and
a learning-rate schedule: fixed (0.01), cosine (from 0.1 to 0.005 over 600 of a worker's
own epochs) or synchronous (over global versions, up to the last). The number of
versions depends on the method, as a version of fedavg is a round of all workers. The
default is asyn2f, synchronous.

    --config=configs/paper/cifar10_overlapping.py:kafl,fixed
"""

from ml_collections import ConfigDict

from asyn2f.config.default import get_config as default

METHODS = ("asyn2f", "kafl", "fedavg")
SCHEDULES = ("synchronous", "fixed", "cosine")


def experiment(
    words: str, sizes: tuple[int, ...], versions: tuple[int, int, int]
) -> ConfigDict:
    """The paper's training (SGD with momentum 0.9, batch 128, L2 5e-4, five epochs per
    push, three updates per version) on shards of these sizes.

    Args:
      words: see above.
      sizes: examples of each worker.
      versions: of a run, by method, in the order of `METHODS`.
    """
    chosen = [word for word in words.split(",") if word]
    unknown = set(chosen) - {*METHODS, *SCHEDULES}
    if unknown:
        raise ValueError(
            f"found {min(unknown)!r} after the colon of --config, allowed: "
            f"{', '.join(METHODS)}; {', '.join(SCHEDULES)}"
        )
    config = default()
    config.workers = len(sizes)
    config.task.sizes = sizes
    method = next((word for word in chosen if word in METHODS), "asyn2f")
    config.strategy.name = method
    config.strategy.kafl.weighting = "plain"
    config.timing.min_updates = 3
    config.timing.epochs_per_push = 5
    config.training.batch_size = 128
    schedule = next((word for word in chosen if word in SCHEDULES), "synchronous")
    config.training.schedule = schedule
    config.training.learning_rate = 0.01 if schedule == "fixed" else 0.1
    config.training.learning_rate_min = 0.005
    config.training.schedule_epochs = 600 if schedule == "cosine" else 0
    last = versions[METHODS.index(method)]
    config.training.schedule_length = config.stop.max_versions = last
    return config


def cifar(
    words: str, sizes: tuple[int, ...], versions: tuple[int, int, int]
) -> ConfigDict:
    """ResNet-18 on CIFAR-10 with shifted and mirrored images."""
    config = experiment(words, sizes, versions)
    config.task.dataset = "cifar10"
    config.task.model = "resnet18"
    config.task.normalise = True
    config.task.augment = "crop_flip"
    config.task.quality = (0.85,)  # the paper's, for every worker
    # Seconds per step on the paper's hardware: two local GPUs, those of Colab, a CPU.
    # A model has 45 MB.
    speeds = (0.05, 0.05, 0.08, 0.08, 0.1, 0.1, 0.1, 0.15, 0.15, 0.5)
    config.sim.step_s = speeds
    config.sim.jitter = 0.1
    config.sim.upload_s = config.sim.download_s = 0.05
    config.sim.upload_mbps = config.sim.download_mbps = 100.0
    return config
