"""Makes the keys by which a server and its peers know each other.

    python -m launch.keys --folder=keys --workers=10
    python -m launch.keys --folder=keys --add=worker-10

`keys/server` stays where the server runs; `keys/worker-3` goes to worker 3's machine,
as `keys/worker-3` there, and the like for `evaluator`. All start with
`--config.runtime.keys_dir=keys`. Nothing is ever overwritten. To revoke a key, delete
`keys/server/allowed/worker-3.public`: what comes under it is no longer listened to.
"""

from pathlib import Path

from absl import flags

from asyn2f.cli import app
from asyn2f.transport import keys

_FOLDER = flags.DEFINE_string("folder", None, "The folder of keys.")
_WORKERS = flags.DEFINE_integer(
    "workers", None, "For so many, a server and an evaluator.", lower_bound=1
)
_ADD = flags.DEFINE_list("add", [], "Names of peers that shall have keys as well.")


def main() -> int:
    folder = Path(app.required(_FOLDER))
    if (_WORKERS.value is None) == (not _ADD.value):
        app.fail("give either --workers=10 for new keys, or --add=worker-10")
    if _WORKERS.value is not None:
        names = keys.peers(_WORKERS.value)
        keys.create(folder, names)
    else:
        names = _ADD.value
        for name in names:
            keys.add(folder, name)
    who = f"{len(names)} more" if _ADD.value else f"{len(names)}"
    peers = "peer" if len(names) == 1 else "peers"
    print(f"{who} {peers} may speak to the server of {folder / keys.SERVER}")
    print(f"copy {folder}/NAME to the machine of NAME, and nothing else")
    return 0
