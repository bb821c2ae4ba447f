"""Methods of federated learning: one file and one builder each, see `Strategy`."""

from asyn2f.strategies._asafl import asafl
from asyn2f.strategies._asyn2f import asyn2f
from asyn2f.strategies._ca2fl import ca2fl
from asyn2f.strategies._fadas import fadas
from asyn2f.strategies._fedasmu import fedasmu
from asyn2f.strategies._fedasync import fedasync
from asyn2f.strategies._fedavg import fedavg
from asyn2f.strategies._fedbuff import fedbuff
from asyn2f.strategies._fedprox import fedprox
from asyn2f.strategies._kafl import kafl
from asyn2f.strategies._server_optimizer import with_server_optimizer
from asyn2f.strategies.base import Strategy

BUILDERS = {
    builder.__name__: builder
    for builder in (
        asafl,
        asyn2f,
        ca2fl,
        fadas,
        fedasmu,
        fedasync,
        fedavg,
        fedbuff,
        fedprox,
        kafl,
    )
}
"""Every strategy by its name in a config."""

__all__ = [
    "BUILDERS",
    "Strategy",
    "asafl",
    "asyn2f",
    "ca2fl",
    "fadas",
    "fedasmu",
    "fedasync",
    "fedavg",
    "fedbuff",
    "fedprox",
    "kafl",
    "with_server_optimizer",
]
