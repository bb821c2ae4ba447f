# %% [markdown]
# # asyn2f on plain pytrees
#
# No server, no config, no training: the functions alone, on models of two numbers.
# Every result in a comment can be found with a pencil.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import asyn2f


def show(name, *arrays):
    print(name, *(np.asarray(array).round(3) for array in arrays))


# %% [markdown]
# ## Local to global
#
# A model is any pytree of arrays. The library takes several of them as one pytree with
# a leading axis.

# %%
anna = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(5.0)}
bert = {"w": jnp.array([3.0, 6.0]), "b": jnp.array(0.0)}


def stack(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


shares = asyn2f.coefficients(
    num_examples=jnp.array([100.0, 300.0]),
    loss=jnp.array([0.5, 0.5]),
    quality=jnp.array([1.0, 1.0]),
    staleness=jnp.array([0, 1]),
    mask=jnp.array([True, True]),
)
model = asyn2f.weighted_sum(stack(anna, bert), shares)

# Bert has three times the examples, but is one version behind, which halves what he
# counts for: 100 / 0.5 = 200 against 300 / (0.5 * 2) = 300, so 0.4 and 0.6.
# w = 0.4 (1, 2) + 0.6 (3, 6) = (2.2, 4.4), b = 0.4 * 5 = 2.
show("coefficients", shares)
show("model", model["w"], model["b"])

# %% [markdown]
# ## Global to local
#
# A worker is in the middle of an epoch when a new version arrives. How much of its own
# model does it keep, where it keeps anything?

# %%
share = asyn2f.local_share(
    local_examples=100.0,
    local_quality=1.0,
    local_loss=0.2,
    global_examples=300.0,
    global_quality=1.0,
    global_loss=0.6,
    beta=0.4,
)

# Of the data it has 100 / (100 + 300) = 0.25; of the losses 0.6 / (0.2 + 0.6) = 0.75,
# as it is the better of the two. 0.4 * 0.25 + 0.6 * 0.75 = 0.55.
show("share", share)

# %%
before = {"w": jnp.array([0.0, 2.0, 1.0])}  # before its last step
now = {"w": jnp.array([1.0, 1.0, 1.0])}
fresh = {"w": jnp.array([3.0, 3.0, 2.0])}  # has just arrived
merged = asyn2f.directional_merge(before, now, fresh, share)

# The first went up, and the global value is higher still: it is taken whole, 3.
# The second went down, away from it: 0.45 * 3 + 0.55 * 1 = 1.9.
# The third has not moved: 0.45 * 2 + 0.55 * 1 = 1.45.
show("merged", merged["w"])

# %% [markdown]
# ## Three methods, the same three updates
#
# The server is at version 4, with w = (1, 1). Three workers push. The first started
# from version 4, the others from version 1, which was (0, 0). The last has a very small
# training loss.

# %%
current = {"w": jnp.array([1.0, 1.0])}
old = {"w": jnp.array([0.0, 0.0])}
started_from = [current, old, old]
has_come_to = [
    {"w": jnp.array([2.0, 1.0])},
    {"w": jnp.array([2.0, 2.0])},
    {"w": jnp.array([0.0, 2.0])},
]
start_version = jnp.array([4, 1, 1])
mask = jnp.array([True, True, True])


def aggregate(strategy):
    """The next model and what each update counted for."""
    state = strategy.init(current, workers=3)
    # `init` makes version 0; we are further on.
    state = state._replace(model=state.model._replace(version=jnp.int32(4)))
    # What travels is the strategy's business: a model, or what has changed in it.
    pushed = map(strategy.push, has_come_to, started_from)
    updates = asyn2f.WorkerUpdate(
        params=stack(*pushed),
        worker=jnp.array([0, 1, 2]),
        info=asyn2f.UpdateInfo(
            base_version=start_version,  # nothing was merged in on the way
            start_version=start_version,
            step=jnp.ones(3, jnp.int32),
            num_examples=jnp.array([100.0, 200.0, 100.0]),
            loss=jnp.array([1.0, 0.5, 0.125]),
            quality=jnp.ones(3),
            metric=jnp.zeros(3),
            signal=jnp.zeros(3),
        ),
    )
    state, metrics = strategy.aggregate(state, updates, mask)
    return state.model.params["w"], metrics["coefficients"]


print(f"{'strategy':8}  {'coefficients':18}  w")
for strategy in (asyn2f.fedavg(), asyn2f.fedbuff(), asyn2f.asyn2f()):
    w, counts = aggregate(strategy)
    row = "  ".join(f"{count:.2f}" for count in counts.tolist())
    print(f"{strategy.name:8}  {row:18}  ({w[0]:.3f}, {w[1]:.3f})")

# fedavg looks at the examples alone, 100 : 200 : 100, and averages models:
#   w = 0.25 (2, 1) + 0.5 (2, 2) + 0.25 (0, 2) = (1.5, 1.75).
#
# fedbuff adds up changes, (1, 0), (2, 2) and (0, 2), each divided by the square root of
# 1 + staleness, which is 1, 2 and 2:
#   w = (1, 1) + ((1, 0) + (1, 1) + (0, 1)) / 3 = (1.667, 1.667).
# The stale ones push from where the server is now, and do not pull it back to (0, 0).
#
# asyn2f weighs by examples / (loss * (1 + staleness)): 100 / 1, 200 / (0.5 * 4) and
# 100 / (0.125 * 4), which is 100 : 100 : 200. A stale update counts most, because a
# coefficient grows as 1 / loss; asyn2f.asyn2f(max_share=0.4) would cap it.
#   w = 0.25 (2, 1) + 0.25 (2, 2) + 0.5 (0, 2) = (1, 1.75).
#
# Only what the server computes is compared here. In a run, timing differs as well:
# fedavg would have waited for all three, and refused what comes late.

# %%
for strategy in (asyn2f.fedavg(), asyn2f.fedbuff(), asyn2f.asyn2f()):
    timing = strategy.timing
    print(f"{strategy.name:8}  {timing.while_training:6}  {timing.after_push}")
