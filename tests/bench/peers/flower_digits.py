"""How many client steps per second does Flower simulate in synchronous FedAvg?

The message API (ServerApp, ClientApp) on the Ray engine. One CPU per client makes one
actor per core, and torch in each takes one thread. Run it in its own environment:
README.md.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

CLIENTS = {"digits": 100, "cnn": 20}
STEPS = {"digits": 10, "cnn": 5}
BATCH = {"digits": 16, "cnn": 10}
RATE = {"digits": 0.05, "cnn": 0.1}
MOMENTUM = {"digits": 0.9, "cnn": 0.0}
ROUNDS = {"digits": 3, "cnn": 2}


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


def network(workload: str):
    """Torch's module: MLP 64-32-10, or the CNN that README.md describes."""
    import torch
    from torch import nn

    if workload == "digits":
        layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)]
    else:
        layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()]
        layers += [nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Dropout(0.5)]
        layers += [nn.Linear(128, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@functools.cache
def prepared(workload: str) -> tuple:
    """The module and every client's batches (drawn once), kept by an actor."""
    import torch

    torch.set_num_threads(1)
    count, clients = STEPS[workload] * BATCH[workload], []
    for x, y in shards(workload):
        passes = [torch.randperm(len(x)) for _ in range(-(-count // len(x)))]
        rows = torch.cat(passes)[:count].split(BATCH[workload])
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        clients.append((len(x), [(x[row], y[row]) for row in rows]))
    return network(workload), clients


def train(message, context):
    """The ClientApp's answer: the arrays after the local steps and the shard's size."""
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    workload = message.content["config"]["workload"]
    module, clients = prepared(workload)
    size, batches = clients[context.node_config["partition-id"]]
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(
        module.parameters(), lr=RATE[workload], momentum=MOMENTUM[workload]
    )
    for x, y in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    content = {
        "arrays": ArrayRecord(module.state_dict()),
        "metrics": MetricRecord({"num-examples": size}),
    }
    return Message(RecordDict(content), reply_to=message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=list(CLIENTS), default="digits")
    parser.add_argument("--rounds", type=int, help="in one repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    name, rounds = args.workload, args.rounds or ROUNDS[args.workload]
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_LOG_LEVEL"] = "ERROR"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

    import torch
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    # What belongs to __main__ goes to the actors by value with every message; what
    # belongs to a module, as in an app that `flwr new` makes, goes by name.
    sys.path.insert(0, str(Path(__file__).parent))
    import flower_digits

    torch.manual_seed(0)
    client, server = ClientApp(), ServerApp()
    client.train()(flower_digits.train)
    seconds = []

    @server.main()
    def serve(grid, context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0)
        arrays = ArrayRecord(network(name).state_dict())
        config = ConfigRecord({"workload": name})
        for _ in range(1 + args.repetitions):
            start = time.perf_counter()
            result = strategy.start(grid, arrays, rounds, train_config=config)
            seconds.append((time.perf_counter() - start) / rounds)
            arrays = result.arrays

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(
        server, client, CLIENTS[name], backend_config={"client_resources": resources}
    )
    settings = {"num_cpus": 1, "torch_threads": 1}
    report("flwr", name, seconds[1:], rounds, settings)


def report(
    peer: str, workload: str, seconds: list[float], rounds: int, settings: dict
) -> None:
    """Prints the line of JSON; `seconds` per round, one entry per repetition."""
    median = statistics.median(seconds)
    packages = ["flwr", "ray", "torch"]
    result = {
        "peer": peer,
        "version": version(peer),
        "workload": workload,
        "steps_per_s": round(CLIENTS[workload] * STEPS[workload] / median, 1),
        "rounds": rounds * len(seconds),
        "median_s_per_round": round(median, 5),
        "min_s_per_round": round(min(seconds), 5),
        "settings": settings | {"momentum": MOMENTUM[workload]},
        "versions": {package: version(package) for package in packages},
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
