"""The server of a run.

    python -m launch.server --config=configs/digits.py --workdir=runs/digits \\
        --config.runtime.address=tcp://127.0.0.1:5570

Workers and evaluators join with `python -m launch.worker` and `.evaluator`.
"""

from pathlib import Path

from absl import flags

from asyn2f import build
from asyn2f.report.live import LiveView
from asyn2f.runtime.addresses import parse_address, reachable
from asyn2f.runtime.server import Server
from launch import machine, program, security
from launch.serving import prepared, say_how_it_ended, serve

program.takes("config", "workdir", "insecure")
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the run in --workdir.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete the run in --workdir first.")


def main() -> int:
    folder = Path(program.required(program.WORKDIR))
    config = program.plain(program.CONFIG.value)
    task = build.build_task(config)
    insecure = security.INSECURE.value
    machine.prepare_jax()
    with (
        prepared(
            config,
            task,
            folder,
            resume=_RESUME.value,
            overwrite=_OVERWRITE.value,
            insecure=insecure,
        ) as claim,
        LiveView() as view,
    ):
        program.log_with_dates()

        def on_ready(address: str, server: Server) -> None:
            claim.begin()
            program.stop_on_signals(server.stop)
            host, _ = parse_address(config["runtime"]["address"])
            more = (
                "" if host == reachable(host) else " and this machine's other addresses"
            )
            view.message(f"listening at {address}{more}, run folder {folder}")

        summary = serve(config, folder, view.update, on_ready, insecure)
    return say_how_it_ended(summary, folder)


if __name__ == "__main__":
    program.run(main, outlives_output=True)
