"""FedAvg in which every client sends back what it got; the server notes the time."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


class Timed(FedAvg):
    """When each round's aggregation was there."""

    done_s: list[float]

    def aggregate_train(self, server_round, replies):
        found = super().aggregate_train(server_round, replies)
        self.done_s.append(time.perf_counter())
        return found


@server.main()
def main(grid: Grid, context: Context) -> None:
    said = context.run_config
    strategy = Timed(fraction_evaluate=0.0, min_available_nodes=int(said["nodes"]))
    strategy.done_s = []
    model = [np.zeros(int(said["kilobytes"]) * 250, np.float32)]
    begun_s = time.perf_counter()
    strategy.start(grid, ArrayRecord(model), num_rounds=int(said["rounds"]))
    done_s = [begun_s, *strategy.done_s]
    Path(str(said["out"])).write_text(json.dumps(np.diff(done_s).tolist()))


@client.train()
def train(message: Message, context: Context) -> Message:
    counted = MetricRecord({"num-examples": 1})
    content = {"arrays": message.content["arrays"], "metrics": counted}
    return Message(content=RecordDict(content), reply_to=message)
