"""The contract of all strategies, as properties that can be checked on any of them.

`asyn2f check-strategy` checks a user-defined strategy, and the tests the built-in ones.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.errors import ContractError, in_one_line
from asyn2f.strategies.base import Strategy
from asyn2f.strategies.requirements import (
    nothing_compiles,
    require,
    require_finite,
    require_layout,
    require_same,
)
from asyn2f.strategies.samples import (
    MASK,
    f32,
    four_updates,
    i32,
    model,
    stack,
    update,
)
from asyn2f.strategies.subject import Subject as Subject
from asyn2f.strategies.uses import used

Property = Callable[[Subject], None]
"""Raises ContractError unless it holds; a strategy's own errors pass through."""


def problems(strategy: Strategy) -> Iterator[tuple[str, str]]:
    """Checks all properties, under strict types and ranks; one pair after the other.

    Yields:
      The name of a property, and what is wrong in one line; "" if it holds.
    """
    subject = Subject(strategy)
    for name, holds in PROPERTIES.items():
        problem = ""
        with (
            jax.numpy_dtype_promotion("strict"),
            jax.numpy_rank_promotion("raise"),
        ):
            try:
                holds(subject)
            except ContractError as error:
                problem = str(error)
            except Exception as error:  # of the strategy's own
                problem = in_one_line(error)
        yield name, problem


# ---------------------------------------------------------------- the properties


def _first_version(subject: Subject) -> None:
    first = subject.first().model
    require(int(first.version) == 0, f"init made version {first.version}, allowed: 0")
    require_same(first.params, model(99), "init changed the parameters")
    found = tuple(float(x) for x in (first.num_examples, first.loss, first.quality))
    require(found == (0, 0, 1), f"examples, loss, quality {found}, allowed: (0, 0, 1)")


def _version_increases(subject: Subject) -> None:
    state, _ = subject.next_state(four_updates())
    after, _ = subject.jitted.aggregate(state, four_updates(), MASK)
    found = int(state.model.version), int(after.model.version)
    require(found == (1, 2), f"versions {found}, allowed: (1, 2)")


def _aggregation_keeps_layout(subject: Subject) -> None:
    after, _ = subject.next_state(four_updates())
    require_layout(after, subject.first(), "the next state")


def _aggregation_is_finite(subject: Subject) -> None:
    require_finite(subject.next_state(four_updates()), "not finite")


def _coefficients(subject: Subject) -> None:
    _, metrics = subject.next_state(four_updates())
    for name in ("coefficients", "staleness"):
        require(name in metrics, f"metrics have no {name}, but {', '.join(metrics)}")
    shares = np.asarray(metrics["coefficients"])
    require_layout(shares, f32([0] * 4), "coefficients")
    require(np.all(shares >= 0), f"negative: {shares}")
    require(abs(shares.sum() - 1) < 1e-6, f"{shares} with sum {shares.sum()}")
    require(shares[3] == 0, f"{shares}: that of the padding row is not 0")


def _padding_is_inert(subject: Subject) -> None:
    state, metrics = subject.next_state(four_updates())
    for junk in (np.nan, np.inf, -1e30):

        def spoil(leaf, junk=junk):
            leaf = leaf.copy()
            leaf[3:] = np.asarray(junk, leaf.dtype) if leaf.dtype.kind != "i" else -7
            return leaf

        spoilt, others = subject.next_state(jax.tree.map(spoil, four_updates()))
        problem = f"{junk} in a padding row changes the next state"
        require_same(spoilt, state, problem)
        require_same(others["coefficients"], metrics["coefficients"], problem)


def _push_keeps_layout(subject: Subject) -> None:
    pushed = jax.jit(subject.strategy.push)(model(1), model(2))
    require_layout(pushed, model(1), "push")


def _memory_does_not_grow(subject: Subject) -> None:
    first = state = subject.first()
    for _ in range(3):
        state, _ = subject.jitted.aggregate(state, four_updates(), MASK)
    require_layout(state, first, "the state after three versions")
    own = sum(leaf.size for leaf in jax.tree.leaves(model(99)["params"]))
    found = sum(np.size(leaf) for leaf in jax.tree.leaves(first.memory))
    require(
        found <= 4 * own,
        f"memory of {found} numbers, allowed: a model for each worker, {4 * own}",
    )


def _model_describes_updates(subject: Subject) -> None:
    after = subject.next_state(four_updates())[0].model
    found = f32([after.num_examples, after.loss, after.quality])
    problem = "sum of examples, means of losses and qualities"
    require_same(found, f32([600, 0.75, 0.875]), problem, rtol=1e-6)


def _staleness(subject: Subject) -> None:
    state = subject.first()
    state = state._replace(model=state.model._replace(version=jnp.int32(7)))
    updates, since = four_updates(), i32([7, 4, 0, 7])
    info = updates.info._replace(base_version=since, start_version=since)
    updates = updates._replace(info=info)
    _, metrics = subject.jitted.aggregate(state, updates, MASK)
    found = np.asarray(metrics["staleness"])
    require_layout(found, i32([0] * 4), "staleness")
    require(found[:3].tolist() == [0, 3, 7], f"{found[:3]}, allowed: [0, 3, 7]")


def _merge_keeps_layout(subject: Subject) -> None:
    require_layout(subject.merged[0], model(1), "merge")


def _merge_is_finite(subject: Subject) -> None:
    require_finite(subject.merged, "not finite")
    first = subject.first().model
    merged = subject.jitted.merge(update(model(1)), model(2), first)
    require_finite(merged, "with version 0 not finite")


def _merge_reports_its_share(subject: Subject) -> None:
    metrics = subject.merged[1]
    require("share" in metrics, f"metrics have no share, but {', '.join(metrics)}")
    share = metrics["share"]
    require(np.shape(share) == (), f"share of shape {np.shape(share)}, allowed: []")
    require(0 <= float(share) <= 1, f"share {share}, allowed: [0, 1]")


def _works_without_jit(subject: Subject) -> None:
    state, metrics = subject.strategy.aggregate(subject.first(), four_updates(), MASK)
    jitted, others = subject.next_state(four_updates())
    problem = "other numbers than with jit"
    require_same(_as_f32(state), _as_f32(jitted), problem, rtol=1e-5)
    both = metrics["coefficients"], others["coefficients"]
    require_same(*both, problem, rtol=1e-5)


def _as_f32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


def _is_pure(subject: Subject) -> None:
    updates, state = four_updates(), subject.first()
    first, _ = subject.jitted.aggregate(state, updates, MASK)
    second, _ = subject.jitted.aggregate(state, updates, MASK)
    require_same(first, second, "a second call has other numbers")
    require_same(updates, four_updates(), "its arguments are changed")


def _second_aggregation_compiles_nothing(subject: Subject) -> None:
    # Of its own: programs of one function are shared.
    aggregate = jax.jit(lambda *args: subject.strategy.aggregate(*args))
    state, _ = aggregate(subject.first(), four_updates(), MASK)
    with nothing_compiles():
        aggregate(state, four_updates(5), ~MASK)


def _second_merge_compiles_nothing(subject: Subject) -> None:
    merge = jax.jit(lambda *args: subject.strategy.merge(*args))
    state, _ = subject.next_state(four_updates())
    merge(update(model(1)), model(2), subject.first().model)
    with nothing_compiles():
        merge(update(model(3), loss=f32(0)), model(4), state.model)


def _statistics_are_averaged(subject: Subject) -> None:
    if not subject.adds:
        return
    # A running variance of 0.5 in all updates; added up as differences from another
    # it would fall below zero.
    updates = four_updates()
    small = np.full_like(updates.params["batch_stats"]["mean"], 0.5)
    updates.params["batch_stats"]["mean"] = small
    found = subject.next_state(updates)[0].model.params["batch_stats"]["mean"]
    require_same(found, f32([0.5, 0.5]), "of four times 0.5", rtol=1e-6)


def _no_change_changes_nothing(subject: Subject) -> None:
    if not subject.adds:
        return
    pushed = subject.strategy.push(model(7), model(7))
    updates = stack([update(pushed, worker=i32(row)) for row in range(4)])
    found = subject.next_state(updates)[0].model.params["params"]
    require_same(found, model(99)["params"], "four empty changes")


def _uses_what_it_names(subject: Subject) -> None:
    more = used(subject.strategy) - subject.strategy.uses
    named = ", ".join(sorted(subject.strategy.uses)) or "none"
    require(
        not more,
        f"the result depends on {', '.join(sorted(more))} of workers, and uses names "
        f"{named}: add it there",
    )


PROPERTIES: dict[str, Property] = {
    "version 0 has the parameters given, and no examples": _first_version,
    "an aggregation makes the version one higher": _version_increases,
    "an aggregation keeps structure, shapes and dtypes": _aggregation_keeps_layout,
    "an aggregation is finite": _aggregation_is_finite,
    "coefficients are at least 0, and sum to 1 over the real rows": _coefficients,
    "padding is inert": _padding_is_inert,
    "a push keeps structure, shapes and dtypes": _push_keeps_layout,
    "memory does not grow": _memory_does_not_grow,
    "a model has the sum of examples, the means of losses and qualities": (
        _model_describes_updates
    ),
    "staleness counts versions since the base version": _staleness,
    "a merge keeps structure, shapes and dtypes": _merge_keeps_layout,
    "a merge is finite": _merge_is_finite,
    "a merge reports the share of the local model": _merge_reports_its_share,
    "functions work without jit too": _works_without_jit,
    "functions are pure": _is_pure,
    "no numbers of workers matter but those in uses": _uses_what_it_names,
    "the second aggregation compiles nothing": _second_aggregation_compiles_nothing,
    "the second merge compiles nothing": _second_merge_compiles_nothing,
    "pushed changes: statistics are averaged, not added": _statistics_are_averaged,
    "pushed changes: no change changes nothing": _no_change_changes_nothing,
}
"""Every property by a sentence."""
