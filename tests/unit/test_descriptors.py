"""The limit of file descriptors: raised where it may be, looked at before a start."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from asyn2f.cli import process
from asyn2f.errors import DescriptorError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def limits(monkeypatch):
    """The soft and the hard limit of a system whose infinity is 10,240."""
    found = [64, 64]

    def set_limits(_: int, wanted: tuple[int, int]) -> None:
        if wanted[0] > (wanted[1] if wanted[1] > 0 else 10_240):
            raise ValueError("current limit exceeds maximum limit")
        found[0] = wanted[0]

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(found))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    return found


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (64, 64, 64),
        (256, 4096, 4096),
        (256, resource.RLIM_INFINITY, 10_240),
        (100_000, 100_000, 100_000),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_it_may_be(limits, soft, hard, raised):
    limits[:] = soft, hard
    process.raise_descriptor_limit()
    assert limits == [raised, hard]


def test_more_workers_than_descriptors_are_refused(limits):
    with pytest.raises(
        DescriptorError, match=r"found 16, .* the limit is 64; raise it"
    ):
        process.check_descriptors(16)
    limits[:] = 64, 4096  # which is enough, and is used
    process.check_descriptors(300)


@pytest.mark.processes
def test_a_run_with_too_many_workers_is_refused_before_anything_starts(tmp_path):
    folder = tmp_path / "run"
    flags = "--config=configs/digits.py --config.workers=16"
    command = f"ulimit -n 64; exec {sys.executable} -m launch.local {flags}"
    done = subprocess.run(
        ["bash", "-c", f"{command} --workdir={folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: config.workers: found 16, which need ")
    assert len(done.stderr.splitlines()) == 1
    assert not folder.exists()
