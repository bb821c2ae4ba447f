"""What `launch.compare --trials` tries for each method, beside the config as it is.

By method: dotted keys and their values, of which combinations are drawn, the same
number for every method. Every method may choose the workers' learning rate, and those
that aggregate several updates how many.
"""

from typing import Any

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

SIZES = (3, 5, 10)

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "asafl": {"training.learning_rate": RATES, "strategy.asafl.rate": (0.05, 0.1, 0.3)},
    "asyn2f": {
        "training.learning_rate": RATES,
        "timing.min_updates": SIZES,
        "strategy.asyn2f.beta": (0.2, 0.4, 0.6, 0.8),
        "strategy.asyn2f.max_share": (0.25, 0.5, 1.0),
    },
    "ca2fl": {
        "training.learning_rate": RATES,
        "timing.min_updates": SIZES,
        "strategy.ca2fl.server_rate": (0.3, 1.0),
    },
    "fadas": {
        "training.learning_rate": RATES,
        "timing.min_updates": SIZES,
        "strategy.fadas.server_rate": (0.001, 0.003, 0.01, 0.03),
    },
    "fedasmu": {
        "training.learning_rate": RATES,
        "strategy.fedasmu.mu": (0.5, 1.0, 2.0, 5.0),
        "strategy.fedasmu.sigma": (0.25, 0.5, 1.0),
    },
    "fedasync": {
        "training.learning_rate": RATES,
        "strategy.fedasync.mixing": (0.2, 0.4, 0.6, 0.9),
        "strategy.fedasync.power": (0.0, 0.5, 1.0),
    },
    "fedavg": {"training.learning_rate": RATES},
    "fedbuff": {
        "training.learning_rate": RATES,
        "timing.min_updates": SIZES,
        "strategy.fedbuff.server_rate": (0.3, 1.0, 2.0),
    },
    "fedprox": {
        "training.learning_rate": RATES,
        "strategy.fedprox.mu": (0.001, 0.01, 0.1, 1.0),
    },
    "kafl": {
        "training.learning_rate": RATES,
        "timing.min_updates": SIZES,
        "strategy.kafl.mixing": (0.4, 0.6, 0.8),
        "strategy.kafl.weighting": ("full", "plain"),
    },
}
