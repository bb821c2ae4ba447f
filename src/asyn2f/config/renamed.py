"""Config keys and values of before 0.2.0, and what they are called now."""

from typing import Any

KEYS = {
    "runtime.beat_s": "runtime.heartbeat_interval_s",
    "runtime.dead_after_s": "runtime.heartbeat_timeout_s",
    "runtime.lease_s": "runtime.server_timeout_s",
    "runtime.announce": "runtime.publish",
    "runtime.background": "runtime.idle_priority",
    "runtime.pin": "runtime.pin_cpus",
    "timing.push_after_metric": "timing.push_at_metric",
    "timing.push_min_accuracy": "timing.push_at_metric",
    "stop.target_accuracy": "stop.target",
    "training.momentum_at_merge": "training.optimizer_at_merge",
    "strategy.fedbuff.reading": "strategy.fedbuff.variant",
    "sim.stay_s": "sim.mean_session_s",
    "sim.join_s": "sim.join_window_s",
    "guards.norm_factor": "guards.max_norm_ratio",
    "guards.loss_factor": "guards.min_loss_ratio",
}
VALUES = {"runtime.publish": {"durable": "after_save", "early": "before_save"}}
NOT_SET = ("timing.push_at_metric", "stop.target")  # None now; 0 before


def new_name(key: str) -> str:
    """A sentence about a key of before; "" for all others.

    >>> new_name("runtime.beat_s")
    'config.runtime.beat_s is called config.runtime.heartbeat_interval_s since 0.2.0'
    >>> new_name("runtime.announce").partition("since ")[2]
    '0.2.0, and its values durable, early are after_save, before_save'
    >>> new_name("stop.target_accuracy")[38:]
    'config.stop.target since 0.2.0, and None is off there, as 0 was'
    """
    if key not in KEYS:
        return ""
    text = f"config.{key} is called config.{KEYS[key]} since 0.2.0"
    if values := VALUES.get(KEYS[key]):
        text += f", and its values {', '.join(values)} are {', '.join(values.values())}"
    if KEYS[key] in NOT_SET:
        text += ", and None is off there, as 0 was"
    return text


def new_value(key: str, value: Any) -> str:
    """What to append to the error about a value of before; "" for all others.

    >>> new_value("runtime.publish", "early")
    '; early is called before_save since 0.2.0'
    """
    values = VALUES.get(key, {})
    if not isinstance(value, str) or value not in values:
        return ""
    return f"; {value} is called {values[value]} since 0.2.0"
