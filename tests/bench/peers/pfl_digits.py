"""How many client steps per second does pfl-research simulate in synchronous FedAvg?

The script starts itself once more (`--processes 1`: not) and the two share each cohort
over torch.distributed, the way pfl's guide "Fast distributed simulations" says. Run it
in its own environment: README.md.
"""

import argparse
import atexit
import functools
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import types
from importlib.metadata import version

CLIENTS = {"digits": 100, "cnn": 20}
STEPS = {"digits": 10, "cnn": 5}
BATCH = {"digits": 16, "cnn": 10}
RATE = {"digits": 0.05, "cnn": 0.1}
MOMENTUM = {"digits": 0.9, "cnn": 0.0}
ROUNDS = {"digits": 5, "cnn": 1}
WARM_UP = 3  # rounds; the first one also evaluates every client


def shards(workload: str) -> list[tuple]:
    """The clients' examples: digits f32 [n, 64], cnn f32 [50, 3, 32, 32]; labels."""
    import numpy as np

    random = np.random.default_rng(0)
    if workload == "cnn":
        x = random.normal(size=(20, 50, 3, 32, 32)).astype(np.float32)
        return list(zip(x, random.integers(10, size=(20, 50)), strict=True))
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    parts = np.array_split(random.permutation(len(x))[:1437], 100)
    return [((x[part] / 16).astype(np.float32), y[part]) for part in parts]


def datasets(workload: str) -> list:
    """Datasets of pfl that hand out full batches, cut beforehand (as pfl caches)."""
    import torch
    from pfl.data.pytorch import PyTorchTensorDataset

    class Shard(PyTorchTensorDataset):
        """A client's tensors (its weight is their number) and its batches."""

        def __init__(self, x, y, user_id: str):
            super().__init__((x, y), user_id=user_id)
            count = STEPS[workload] * BATCH[workload]
            passes = [torch.randperm(len(x)) for _ in range(-(-count // len(x)))]
            rows = torch.cat(passes)[:count].split(BATCH[workload])
            self.batches = [[x[row], y[row]] for row in rows]

        def iter(self, batch_size):
            return iter(self.batches)

    pairs = [tuple(map(torch.as_tensor, shard)) for shard in shards(workload)]
    return [Shard(x, y, user_id=str(i)) for i, (x, y) in enumerate(pairs)]


def network(workload: str):
    """Torch's module: MLP 64-32-10, or the CNN that README.md describes."""
    import torch
    from pfl.metrics import Weighted
    from torch import nn

    if workload == "digits":
        layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)]
    else:
        layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()]
        layers += [nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Dropout(0.5)]
        layers += [nn.Linear(128, 10)]
    module = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def loss(self, x, y, eval=False):
        return nn.functional.cross_entropy(self(x), y)

    def metrics(self, x, y, eval=False):
        right = (self(x).argmax(1) == y).sum().item()
        return {"accuracy": Weighted(right, len(y))}

    module.loss = types.MethodType(loss, module)
    module.metrics = types.MethodType(metrics, module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=list(CLIENTS), default="digits")
    parser.add_argument("--processes", type=int, choices=[1, 2], default=2)
    parser.add_argument("--threads", type=int, default=1, help="of torch, each")
    parser.add_argument("--rounds", type=int, help="in one repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    name, rounds = args.workload, args.rounds or ROUNDS[args.workload]
    rank = int(os.environ.get("PFL_WORKER_RANK", 0))
    second = None
    if args.processes == 2 and "PFL_WORKER_RANK" not in os.environ:
        with socket.socket() as free, socket.socket() as other:
            free.bind(("localhost", 0))
            other.bind(("localhost", 0))
            ports = [free.getsockname()[1], other.getsockname()[1]]
        addresses = ",".join(f"localhost:{port}" for port in ports)
        os.environ["PFL_WORKER_ADDRESSES"] = addresses
        second = subprocess.Popen(
            [sys.executable, *sys.argv], env=os.environ | {"PFL_WORKER_RANK": "1"}
        )
        atexit.register(second.kill)  # should this one fail, the other must not wait
        os.environ["PFL_WORKER_RANK"] = "0"

    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    np.random.seed(0)
    users = datasets(name)
    sampler = get_user_sampler("minimize_reuse", list(range(len(users))))
    data = FederatedDataset(users.__getitem__, sampler)
    module = network(name)
    model = PyTorchModel(
        module,
        functools.partial(torch.optim.SGD, momentum=MOMENTUM[name]),
        torch.optim.SGD(module.parameters(), lr=1.0),
    )
    ends = []

    class Clock(TrainingProcessCallback):
        """Notes when each round ended."""

        def after_central_iteration(self, aggregate_metrics, model, **_):
            ends.append(time.perf_counter())
            return False, Metrics()

    total = WARM_UP + rounds * args.repetitions
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=total,
            evaluation_frequency=total,
            train_cohort_size=len(users),
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=BATCH[name],
            local_num_epochs=None,
            local_learning_rate=RATE[name],
            local_num_steps=STEPS[name],
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Clock()],
        send_metrics_to_platform=False,
    )
    if second and second.wait():
        sys.exit("error: the second process failed")
    if rank == 0:
        marks = ends[WARM_UP - 1 :: rounds]
        pairs = itertools.pairwise(marks)
        seconds = [(end - start) / rounds for start, end in pairs]
        settings = {"processes": args.processes, "torch_threads": args.threads}
        report("pfl", name, seconds, rounds, settings)


def report(
    peer: str, workload: str, seconds: list[float], rounds: int, settings: dict
) -> None:
    """Prints the line of JSON; `seconds` per round, one entry per repetition."""
    median = statistics.median(seconds)
    result = {
        "peer": peer,
        "version": version(peer),
        "workload": workload,
        "steps_per_s": round(CLIENTS[workload] * STEPS[workload] / median, 1),
        "rounds": rounds * len(seconds),
        "median_s_per_round": round(median, 5),
        "min_s_per_round": round(min(seconds), 5),
        "settings": settings | {"momentum": MOMENTUM[workload]},
        "versions": {package: version(package) for package in ["pfl", "torch"]},
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
