"""Writes hospitals.csv: the breast cancer set, each row owned by one of four hospitals.

    python make_csv.py [FILE]

Small tumours are in the north, large ones in the west, so that no hospital sees what
the others see: 7, 14, 42 and 86 % of their tumours are malignant.
"""

import csv
import sys

import numpy as np
from sklearn.datasets import load_breast_cancer

HOSPITALS = ("north", "east", "south", "west")


def main(path: str = "hospitals.csv") -> None:
    bunch = load_breast_cancer()
    size = bunch.data[:, 0] + np.random.default_rng(0).normal(0, 2, len(bunch.data))
    owner = np.searchsorted(np.quantile(size, [0.25, 0.5, 0.75]), size)
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["hospital", *bunch.feature_names, "malignant"])
        for k, values in enumerate(bunch.data.tolist()):
            rows.writerow([HOSPITALS[owner[k]], *values, 1 - bunch.target[k]])


if __name__ == "__main__":
    main(*sys.argv[1:])
