"""The server of a run.

    python -m launch.server --config=configs/digits.py --workdir=runs/digits \\
        --config.runtime.address=tcp://127.0.0.1:5570

Workers and evaluators join with `python -m launch.worker` and `.evaluator`.
"""

from pathlib import Path

from asyn2f.cli import app, machine, security
from asyn2f.cli.serving import prepared, print_summary, serve
from asyn2f.config import build
from asyn2f.report.live import LiveView
from asyn2f.runtime.server import Server
from asyn2f.transport.addresses import parse_address, reachable

app.takes("config", "workdir", "insecure", "resume", "overwrite")


def main() -> int:
    folder = Path(app.required(app.WORKDIR))
    config = app.plain(app.CONFIG.value)
    task = build.build_task(config)
    insecure = security.INSECURE.value
    machine.prepare_jax()
    with (
        prepared(
            config,
            task,
            folder,
            resume=app.RESUME.value,
            overwrite=app.OVERWRITE.value,
            insecure=insecure,
        ) as claim,
        LiveView() as view,
    ):
        app.log_with_dates()

        def on_ready(address: str, server: Server) -> None:
            claim.begin()
            app.stop_on_signals(server.stop)
            host, _ = parse_address(config["runtime"]["address"])
            more = (
                "" if host == reachable(host) else " and this machine's other addresses"
            )
            view.message(f"listening at {address}{more}, run folder {folder}")

        summary = serve(config, folder, view.update, on_ready, insecure)
    return print_summary(summary, folder)
