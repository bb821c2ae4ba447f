"""The keys at the root of a config, and the choice of the strategy."""

from dataclasses import dataclass

from asyn2f.config.references import is_reference
from asyn2f.errors import AddressError, ConfigError
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.settings import setting
from asyn2f.strategies import BUILDERS
from asyn2f.training.sharing import PATTERN, is_pattern
from asyn2f.transport.base import parse_address


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The whole experiment."""

    seed: int = setting(
        0,
        "of everything that is drawn: split, initial model, batches",
        allowed="0 to 2**64 - 1",
        holds=lambda x: 0 <= x < 2**64,
    )
    workers: int = setting(
        5, "one for each shard of the data", unit="workers", at_least=1
    )
    share: tuple[str, ...] = setting(
        (),
        "patterns of the leaves of the model that travel, as `params/body/**`; or of "
        "those that stay with their worker, after a `!`; () = all travel",
        may_be_empty=True,
        allowed=PATTERN,
        holds=is_pattern,
    )
    code_path: str = setting(
        "",
        "where the modules of `task.factory`, `strategy.name` and optimizers lie; "
        "those beside the config file and in the working directory are found without "
        "it",
        allowed="folders, separated as in PYTHONPATH, or empty",
        holds=lambda _: True,
    )


@dataclass(frozen=True, kw_only=True)
class StrategyChoice:
    """The method. Settings of other methods than the chosen one have no effect."""

    name: str = setting(
        "asyn2f",
        "the method; arguments of a user-defined one are `strategy.args.*`",
        options=BUILDERS,
        allowed="MODULE:FUNCTION; or FILE.py:FUNCTION",
        holds=is_reference,
    )
    server_optimizer: str = setting(
        "",
        "takes the strategy's aggregate as a step of an optimizer: `optax:adam`, or a "
        "user-defined function that returns a transformation; its arguments are "
        "`strategy.server_optimizer_args.*`",
        allowed="MODULE:FUNCTION; FILE.py:FUNCTION; or empty, for none",
        holds=lambda x: x == "" or is_reference(x),
    )


def check_runtime(settings: RuntimeSettings) -> None:
    """Checks the address, and that heartbeats come before their timeout."""
    interval_s = settings.heartbeat_interval_s
    if settings.heartbeat_timeout_s <= interval_s:
        raise ConfigError(
            "config.runtime.heartbeat_timeout_s: found "
            f"{settings.heartbeat_timeout_s}, allowed: above heartbeat_interval_s, "
            f"which is {interval_s}"
        )
    try:
        parse_address(settings.address)
    except AddressError as error:
        raise ConfigError(f"config.runtime.{error}") from None
