"""What does a round in which nobody computes cost on Flower's deployment engine?

A SuperLink and SuperNodes on this machine, as its documentation starts them; the app is
in `flower_rounds/`. Run it in its own environment: README.md. `--patience` bounds all.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

APP = Path(__file__).parent / "flower_rounds"
BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--kilobytes", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=300.0, help="seconds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds_s = run(Path(folder), args)
    # The first waits for the nodes and starts what is started once.
    said = {
        "peer": f"flwr {version('flwr')}, deployment engine",
        "nodes": args.nodes,
        "kilobytes": args.kilobytes,
        "rounds_s": [round(x, 3) for x in rounds_s],
        "median_s": statistics.median(rounds_s[1:]),
    }
    print(json.dumps(said))


def run(folder: Path, args: argparse.Namespace) -> list[float]:
    """Seconds of each round."""
    port, out = free_port(), folder / "rounds.json"
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "here"\n\n'
        f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    shutil.copytree(APP, folder / "app")
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    with ExitStack() as stack:

        def start(program: str, *flags: str) -> subprocess.Popen:
            log = stack.enter_context((folder / f"{program}.log").open("a"))
            process = subprocess.Popen(
                [BIN / program, "--insecure", "--host=127.0.0.1", *flags],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(end, process)
            return process

        installs_nothing = "--disable-runtime-dependency-installation"
        start("flower-superlink", installs_nothing, f"--port={port}")
        wait_for(port, args.patience)
        for _ in range(args.nodes):
            link = f"--superlink=127.0.0.1:{port}"
            start("flower-supernode", link, f"--port={free_port()}")
        config = f'nodes={args.nodes} rounds={args.rounds} out="{out}" '
        config += f"kilobytes={args.kilobytes}"
        begin_s = time.monotonic()
        command = [BIN / "flwr", "run", folder / "app", "here", "--stream"]
        try:
            said = subprocess.run(
                [*command, "--run-config", config],
                env=environment,
                timeout=args.patience,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ).stdout
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode()
        if not out.exists():
            seconds = time.monotonic() - begin_s
            logs = "".join(x.read_text()[-2000:] for x in folder.glob("*.log"))
            sys.exit(f"no rounds in {seconds:.0f} s:\n{said}\n{logs}")
        return json.loads(out.read_text())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port: int, patience_s: float) -> None:
    """Until somebody listens there."""
    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)  # a program of others: it says nothing when it listens
    sys.exit(f"nobody listens on port {port}")


def end(process: subprocess.Popen) -> None:
    """Ends it and all that it has started."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
