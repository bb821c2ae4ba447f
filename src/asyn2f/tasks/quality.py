"""The quality of a worker's data: the paper's Q_k, a mean of six scores."""

from typing import Any, NamedTuple

import numpy as np

_RELEVANCE = 0.9  # a
_FOLDS = 5


class Quality(NamedTuple):
    """Six scores of a data set, each in [0, 1], 1 the best."""

    class_overlap: float  # share of examples left without those in Tomek links
    class_parity: float  # balance of the class counts
    label_purity: float  # share of examples without a label issue
    feature_correlation: float  # 1 - mean absolute correlation
    feature_relevance: float  # importance of the features, and its evenness
    completeness: float  # share of cells that are not missing

    @property
    def score(self) -> float:
        """Q_k, their plain mean."""
        return sum(self) / len(self)


def quality_of(
    features: np.ndarray, labels: np.ndarray, num_classes: int = 0, seed: int = 0
) -> Quality:
    """The six scores of a worker's own data (Asyn2F, quality of data).

    Missing cells lower the completeness; for the other scores each is replaced by the
    median of its feature. The classifier is a random forest of 100 trees, with
    out-of-fold class probabilities; Tomek links are found on standardised features.
    Examples of a single class, or of a class with one example, have no label issues.

    Args:
      features: [N, F], any embedding of the data; NaN = missing.
      labels: i32 [N].
      num_classes: of the task, for the parity; 0 = those that the worker has.
      seed: of the forests and folds.

    Raises:
      ValueError: other shapes, infinite features, or no examples.
      ImportError: the libraries of the extra "quality" are not installed.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(40) % 2
    >>> features = rng.normal(size=(40, 3)) + 9.0 * labels[:, None] * [1, 0, 0]
    >>> quality_of(features, labels).class_overlap
    1.0
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or not features.size or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features: found {features.shape} with labels {labels.shape}; needed: "
            "[N, F] and [N]"
        )
    if np.isinf(features).any():
        raise ValueError("features: found an infinite value; missing cells are NaN")
    # Imported here: it takes seconds.
    from sklearn.ensemble import RandomForestClassifier

    filled = _filled(features)
    linked, left = _tomek(_standardised(filled), labels)
    forest = RandomForestClassifier(random_state=seed)
    doubtful = linked & _doubtful(forest, filled, labels, seed)
    importances = forest.fit(filled, labels).feature_importances_
    return Quality(
        class_overlap=float(left / len(labels)),
        class_parity=class_parity(_counts(labels, num_classes)),
        label_purity=float(1 - doubtful.mean()),
        feature_correlation=feature_correlation(filled),
        feature_relevance=feature_relevance(importances),
        completeness=float(1 - np.isnan(features).mean()),
    )


def class_parity(counts: np.ndarray) -> float:
    """`1 - mean_c |r_c - mean(r)|` with r_c = n_c / max(n), of the counts of classes.

    >>> class_parity(np.array([10, 10])), class_parity(np.array([10, 5]))
    (1.0, 0.75)
    """
    ratios = counts / counts.max()
    return float(1 - np.abs(ratios - ratios.mean()).mean())


def feature_correlation(features: np.ndarray) -> float:
    """`1 - mean |corr|` over the pairs of features. Constant features are correlated
    with none; a single feature scores 1.

    >>> feature_correlation(np.array([[1.0, -2.0, 0.0], [2.0, -4.0, 0.0]]))
    0.6666666666666667
    """
    standard = _standardised(features)
    each = standard.T @ standard / len(features)
    # Rounding may put the correlation of equal features above 1.
    pairs = np.minimum(np.abs(each[np.triu_indices(len(each), k=1)]), 1.0)
    return float(1 - pairs.mean()) if len(pairs) else 1.0


def feature_relevance(importances: np.ndarray) -> float:
    """`a (1 - var(importances)) + (1 - a) mean of the three largest`, a = 0.9.

    >>> round(feature_relevance(np.array([0.5, 0.5])), 3)
    0.95
    """
    best = np.sort(importances)[-3:]
    spread = 1 - importances.var()
    return float(_RELEVANCE * spread + (1 - _RELEVANCE) * best.mean())


def _filled(features: np.ndarray) -> np.ndarray:
    """Missing cells replaced by the median of their feature; 0 where all are
    missing."""
    missing = np.isnan(features)
    empty = missing.all(axis=0)
    medians = np.zeros(features.shape[1])
    medians[~empty] = np.nanmedian(features[:, ~empty], axis=0)
    return np.where(missing, medians, features)


def _standardised(features: np.ndarray) -> np.ndarray:
    """Features with mean 0 and deviation 1; constant ones 0."""
    deviation = features.std(axis=0)
    centred = features - features.mean(axis=0)
    # Rounding may give a constant a deviation.
    changes = deviation > 1e-12 * np.abs(features).max(axis=0)
    return np.where(changes, centred / np.where(changes, deviation, 1.0), 0.0)


def _counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    counts = np.unique(labels, return_counts=True)[1]
    return np.pad(counts, (0, max(num_classes - len(counts), 0)))


def _tomek(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Which examples are in a Tomek link (two of different classes, each the other's
    nearest), and the number left without those of all classes but the smallest; the
    mean over the smallest if there are several."""
    from imblearn.under_sampling import TomekLinks
    from sklearn.neighbors import NearestNeighbors

    classes, numbered, counts = np.unique(
        labels, return_inverse=True, return_counts=True
    )
    if len(classes) == 1:
        return np.zeros(len(labels), bool), len(labels)
    # Not the example itself, even where two are equal.
    nearest = NearestNeighbors(n_neighbors=1).fit(features)
    neighbour = nearest.kneighbors(return_distance=False)[:, 0]
    linked = TomekLinks.is_tomek(labels, neighbour, classes)
    by_class = np.bincount(numbered[linked], minlength=len(classes))
    spared = by_class[counts == counts.min()].mean()
    return linked, len(labels) - linked.sum() + spared


def _doubtful(
    forest: Any, features: np.ndarray, labels: np.ndarray, seed: int
) -> np.ndarray:
    """Examples with a label issue by cleanlab, with out-of-fold probabilities."""
    from cleanlab.filter import find_label_issues
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    _, numbered, counts = np.unique(labels, return_inverse=True, return_counts=True)
    doubtful = np.zeros(len(labels), bool)
    rows = np.flatnonzero(counts[numbered] >= 2)
    # Numbered from 0 without gaps, for cleanlab.
    _, known = np.unique(numbered[rows], return_inverse=True)
    if (counts >= 2).sum() >= 2:
        folds = min(_FOLDS, int(counts[counts >= 2].min()))
        split = StratifiedKFold(folds, shuffle=True, random_state=seed)
        probabilities = cross_val_predict(
            forest, features[rows], known, cv=split, method="predict_proba"
        )
        doubtful[rows] = find_label_issues(known, probabilities, n_jobs=1)
    return doubtful
