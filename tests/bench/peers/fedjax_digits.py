"""How many client steps per second does FedJAX simulate in synchronous FedAvg?

The library's own algorithm (`fedjax.algorithms.fed_avg`) and its backends of
`for_each_client`; it has no vmap backend. `pmap` here means two XLA devices on one
CPU, which computes two clients at a time. Run it in its own environment: README.md.
"""

import argparse
import json
import os
import statistics
import time
from importlib.metadata import version

CLIENTS = {"digits": 100, "cnn": 20}
STEPS = {"digits": 10, "cnn": 5}
BATCH = {"digits": 16, "cnn": 10}
RATE = {"digits": 0.05, "cnn": 0.1}
MOMENTUM = {"digits": 0.9, "cnn": 0.0}
ROUNDS = {"digits": 5, "cnn": 1}
BACKEND = {"digits": "jit", "cnn": "pmap"}  # the faster one


def shards(workload: str) -> list[dict]:
    """The clients' examples: digits f32 [n, 64], cnn f32 [50, 32, 32, 3]; labels."""
    import numpy as np

    random = np.random.default_rng(0)
    if workload == "cnn":
        x = random.normal(size=(20, 50, 32, 32, 3)).astype(np.float32)
        y = random.integers(10, size=(20, 50)).astype(np.int32)
        return [{"x": x[i], "y": y[i]} for i in range(20)]
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    parts = np.array_split(random.permutation(len(x))[:1437], 100)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    return [{"x": x[part], "y": y[part]} for part in parts]


def build(workload: str):
    """FedJAX's model: MLP 64-32-10, or the CNN that README.md describes."""
    import fedjax
    import haiku
    import jax
    import jax.numpy as jnp

    def forward(batch, is_train=True):
        x = batch["x"]
        if workload == "digits":
            return haiku.nets.MLP([32, 10])(x)
        x = jax.nn.relu(haiku.Conv2D(32, 3, padding="VALID")(x))
        x = jax.nn.relu(haiku.Conv2D(64, 3, padding="VALID")(x))
        x = haiku.MaxPool((2, 2, 1), (2, 2, 1), padding="VALID")(x)
        if is_train:
            x = haiku.dropout(haiku.next_rng_key(), 0.25, x)
        x = jax.nn.relu(haiku.Linear(128)(haiku.Flatten()(x)))
        if is_train:
            x = haiku.dropout(haiku.next_rng_key(), 0.5, x)
        return haiku.Linear(10)(x)

    def loss(batch, logits):
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch["y"][:, None], axis=1
        )
        return -picked[:, 0]

    shape = (64,) if workload == "digits" else (32, 32, 3)
    sample = {"x": jnp.zeros((1, *shape)), "y": jnp.zeros(1, jnp.int32)}
    return fedjax.create_model_from_haiku(
        transformed_forward_pass=haiku.transform(forward),
        sample_batch=sample,
        train_loss=loss,
        train_kwargs={"is_train": True},
        eval_kwargs={"is_train": False},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=list(CLIENTS), default="digits")
    parser.add_argument("--backend", choices=["jit", "pmap"])
    parser.add_argument("--rounds", type=int, help="in one repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    name, rounds = args.workload, args.rounds or ROUNDS[args.workload]
    backend = args.backend or BACKEND[name]
    if backend == "pmap":  # read when JAX starts its CPU client
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

    import fedjax
    import jax
    from fedjax.algorithms import fed_avg

    fedjax.set_for_each_client_backend(backend)
    model = build(name)
    algorithm = fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(RATE[name], MOMENTUM[name] or None),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(
            batch_size=BATCH[name], num_epochs=None, num_steps=STEPS[name]
        ),
    )
    datasets = [fedjax.ClientDataset(shard) for shard in shards(name)]
    keys = jax.random.split(jax.random.PRNGKey(1), len(datasets))
    clients = list(zip(range(len(datasets)), datasets, list(keys), strict=True))

    def run(state, count: int):
        for _ in range(count):
            state, _ = algorithm.apply(state, clients)
        return jax.block_until_ready(state.params), state

    _, state = run(algorithm.init(model.init(jax.random.PRNGKey(0))), 2)
    seconds = []
    for _ in range(args.repetitions):
        start = time.perf_counter()
        _, state = run(state, rounds)
        seconds.append((time.perf_counter() - start) / rounds)
    report("fedjax", name, seconds, rounds, {"backend": backend})


def report(
    peer: str, workload: str, seconds: list[float], rounds: int, settings: dict
) -> None:
    """Prints the line of JSON; `seconds` per round, one entry per repetition."""
    median = statistics.median(seconds)
    packages = ["fedjax", "jax", "jaxlib", "dm-haiku", "numpy"]
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
