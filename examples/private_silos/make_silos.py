"""Writes three files of digits, silos/0.npz to silos/2.npz, each with rows of its own.

python make_silos.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def main(folder: str = "silos") -> None:
    digits = load_digits()
    rows = np.delete(np.arange(len(digits.data)), slice(None, None, 5))
    for silo, own in enumerate(np.array_split(rows, [300, 700])):
        path = Path(folder, f"{silo}.npz")
        path.parent.mkdir(exist_ok=True)
        np.savez(path, x=digits.data[own] / 16.0, y=digits.target[own])


if __name__ == "__main__":
    main(*sys.argv[1:])
