"""The section `task`: a model, its data, and how they are split over the workers.

The built-in classification is a factory like those that `task.factory` names: a
function from arguments, here the keys `task.*` themselves, to a task that is not split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from asyn2f.config.references import is_reference
from asyn2f.errors import ConfigError, DataError
from asyn2f.settings import setting, settings_of
from asyn2f.tasks import models, partition
from asyn2f.tasks.base import Task, num_rows
from asyn2f.tasks.classification import Augment, ClassWeights, make_classification_task
from asyn2f.tasks.data import DATASETS, read_dataset
from asyn2f.tasks.models import ConvImpl
from asyn2f.tasks.tfds import is_folder

_RESIDUAL = {
    "resnet18": models.resnet18,
    "resnet20": models.resnet20,
    "resnet34": models.resnet34,
}
_MODELS = ("mlp", "cnn", "small_cnn", *_RESIDUAL, "ember")
_Split = Callable[
    ["TaskSettings", np.ndarray, int, np.random.Generator], partition.Shards
]
_PARTITIONS: dict[str, _Split] = {
    "iid": lambda task, labels, workers, rng: partition.iid(labels, workers, rng),
    "sizes": lambda task, labels, _, rng: partition.by_sizes(labels, task.sizes, rng),
    "normal": lambda task, labels, workers, rng: partition.normal_sizes(
        labels, workers, task.size_spread, rng
    ),
    "overlapping": lambda task, labels, _, rng: partition.overlapping(
        labels, task.sizes, rng
    ),
    "class_shares": lambda task, labels, _, rng: partition.by_class_shares(
        labels, task.sizes, task.class_shares, rng
    ),
    "dirichlet": lambda task, labels, workers, rng: partition.dirichlet(
        labels, workers, task.alpha, rng
    ),
    "shards": lambda task, labels, workers, rng: partition.by_label_shards(
        labels, workers, task.shards_per_worker, rng
    ),
    "file": lambda task, labels, workers, _: partition.from_file(
        labels, workers, Path(task.indices)
    ),
}
_BY_SIZES = ("sizes", "overlapping", "class_shares")
_BY_LABEL = ("class_shares", "dirichlet", "shards")
_OF_SPLIT = (
    *("partition", "sizes", "size_spread", "class_shares", "alpha"),
    *("shards_per_worker", "indices", "quality"),
)


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The model, its data, and how they are split over the workers."""

    factory: str = setting(
        "",
        "a function of your own that makes the task, of the arguments `task.args.*`; "
        "the keys `partition` to `quality` split its data unless it does",
        allowed="MODULE:FUNCTION, FILE.py:FUNCTION, or empty",
        holds=lambda x: not x or is_reference(x),
    )
    dataset: str = setting(
        "digits",
        "by name, or the folder of an image classification set that "
        "tensorflow-datasets has prepared",
        allowed=f"one of {', '.join(DATASETS)}; or the folder of a data set that "
        "tensorflow-datasets has prepared, with a / in it",
        holds=lambda x: x in DATASETS or is_folder(x),
        is_path=is_folder,
    )
    data_dir: str = setting(
        "",
        "where the data set is; empty = where tensorflow-datasets puts it",
        allowed="a folder, or empty",
        is_path=bool,
    )
    model: str = setting("mlp", "the network", options=_MODELS)
    hidden: tuple[int, ...] = setting(
        (32,), "of `mlp` and `small_cnn`: widths of the hidden dense layers", at_least=1
    )
    channels: tuple[int, ...] = setting(
        (16, 32), "of `cnn` and `small_cnn`: channels of the convolutions", at_least=1
    )
    batch_norm: bool = setting(False, "of `cnn`: batch normalisation")
    conv_impl: ConvImpl = setting(
        "auto", "how convolutions are computed; the parameters are the same"
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "what the network computes in; its parameters are float32"
    )
    normalise: bool = setting(
        False, "each channel to mean 0, deviation 1 of the training set"
    )
    augment: Augment = setting(
        "none", "`crop_flip`: training images are shifted and mirrored"
    )
    class_weights: ClassWeights = setting("none", "of the loss")
    partition: str = setting(
        "iid", "how the training set is split over the workers", options=_PARTITIONS
    )
    sizes: tuple[int, ...] = setting(
        (0,),
        "of `sizes`, `overlapping` and `class_shares`: examples of each worker",
        unit="examples",
        at_least=0,
    )
    size_spread: float = setting(
        0.25,
        "of `normal`: standard deviation of a size over the mean size",
        at_least=0,
    )
    class_shares: tuple[float, ...] = setting(
        (0.0,),
        "of `class_shares`: fraction of each class, worker after worker",
        at_least=0,
    )
    alpha: float = setting(
        0.5, "of `dirichlet`: concentration; small = strong label skew", above=0
    )
    shards_per_worker: int = setting(
        2, "of `shards`: pieces of the label-sorted data", at_least=1
    )
    indices: str = setting(
        "",
        "of `file`: JSON, a list of row numbers for each worker",
        allowed="a file .json, or empty",
        is_path=bool,
    )
    quality: tuple[float, ...] = setting(
        (1.0,), "Q_k of each worker, repeated over the workers", above=0, at_most=1
    )


def check_task(task: TaskSettings, workers: int) -> None:
    """Checks that network, augmentation and split suit the data and the workers.

    Raises:
      ConfigError: they do not.
    """
    if task.partition in _BY_SIZES and len(task.sizes) != workers:
        raise ConfigError(
            f"config.task.sizes: found {len(task.sizes)} sizes, allowed: one for each "
            f"of the {workers} workers"
        )
    if task.factory:
        return
    is_ember = task.dataset == "ember"
    if (task.model == "ember") != is_ember:
        allowed = "ember" if is_ember else "any but ember"
        raise ConfigError(
            f"config.task.model: found {task.model!r}, but the data set is "
            f"{task.dataset}; allowed: {allowed}"
        )
    if is_ember and (task.augment != "none" or task.normalise):
        raise ConfigError(
            "config.task: augment and normalise are for images; EMBER's features are "
            "in bins: leave them out"
        )


def of_built_in() -> list[str]:
    """The keys of arguments that the built-in task alone has."""
    names = settings_of(TaskSettings).keys() - {"factory", *_OF_SPLIT}
    return [f"task.{name}" for name in sorted(names)]


def classification(task: TaskSettings) -> Task:
    """The built-in task, not split: data read, no array on any device yet.

    Raises:
      ConfigError: the data are missing or malformed.
    """
    try:
        dataset = read_dataset(task.dataset, task.data_dir)
    except DataError as error:
        raise ConfigError(f"config.task.dataset: {error}") from None
    return make_classification_task(
        f"{task.dataset}-{task.model}",
        _model(task, dataset.num_classes),
        dataset,
        shards=(),
        normalise=task.normalise,
        augment=task.augment,
        class_weights=task.class_weights,
    )


def with_shards(task: Task, settings: TaskSettings, workers: int, seed: int) -> Task:
    """The task, its data split as configured unless they are split already.

    Raises:
      ConfigError: they cannot be split so, or are split for other workers.
    """
    qualities = tuple(
        settings.quality[k % len(settings.quality)] for k in range(workers)
    )
    if task.shards:
        _check_shards(task, settings, workers)
        return task._replace(qualities=task.qualities or qualities)
    labels = task.labels
    if labels is None:
        if settings.partition in _BY_LABEL:
            others = ", ".join(name for name in _PARTITIONS if name not in _BY_LABEL)
            raise ConfigError(
                f"config.task.partition: found {settings.partition!r}, but {task.name} "
                f"has no labels; allowed: {others}; or let Task.labels be a class for "
                "each row; asyn2f.supervised sets it of targets that are class "
                "numbers, integers from 0, one for each row"
            )
        labels = np.zeros(num_rows(task.train), np.int32)
    rng = np.random.default_rng(seed)
    try:
        shards = _PARTITIONS[settings.partition](settings, labels, workers, rng)
    except ValueError as error:
        raise ConfigError(f"config.task: {error}") from None
    return task._replace(shards=tuple(shards), qualities=qualities)


def _check_shards(task: Task, settings: TaskSettings, workers: int) -> None:
    if len(task.shards) != workers:
        raise ConfigError(
            f"config.workers: found {workers}, but {task.name} is split already, for "
            f"{len(task.shards)}; allowed: {len(task.shards)}"
        )
    if settings.partition != "iid":
        raise ConfigError(
            f"config.task.partition: found {settings.partition!r}, but {task.name} is "
            "split already; leave it at iid"
        )


def _model(task: TaskSettings, num_classes: int) -> Any:
    impl, dtype = task.conv_impl, jnp.dtype(task.dtype)
    match task.model:
        case "mlp":
            return models.MLP(task.hidden, num_classes, dtype)
        case "cnn":
            norm = task.batch_norm
            return models.CNN(task.channels, num_classes, norm, impl, dtype)
        case "small_cnn":
            sizes = task.channels, task.hidden
            return models.SmallCNN(*sizes, num_classes, impl, dtype)
        case "ember":
            return models.EmberNet(num_classes, dtype)
        case name:
            return _RESIDUAL[name](num_classes, conv_impl=impl, dtype=dtype)
