"""Whole runs as values: simulated, replayed, verified."""

from asyn2f.api.replaying import replay as replay
from asyn2f.api.results import Simulation as Simulation
from asyn2f.api.simulation import config_of as config_of
from asyn2f.api.simulation import order_of_config as order_of_config
from asyn2f.api.simulation import simulate as simulate
from asyn2f.api.stored import load_params as load_params
from asyn2f.api.verification import verify as verify
