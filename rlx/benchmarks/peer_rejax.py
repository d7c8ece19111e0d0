"""rejax: JAX, the whole training compiled, seeds along an axis by `vmap`."""

import os
from typing import Any

PROGRAM = "rejax"
NEEDS = ("rejax", "jax", "gymnax")
ONE_SEED = False

ENVS = ("Acrobot-v1", "CartPole-v1", "MountainCar-v0", "Pendulum-v1")
"""Envs of gymnax that compute what Gymnasium's of that name do."""


def refusal(settings: dict[str, Any]) -> str | None:
    """Why it cannot train this."""
    agent = settings["agent"]
    if agent["_target_"] not in ("rlx.agents.dqn.DQN", "rlx.agents.ppo.PPO"):
        return "has no such agent"
    if agent.get("recurrent"):
        return "has no agent with memory"
    if settings["env_id"] not in ENVS:
        return f"has none of gymnax's envs {', '.join(ENVS)} here"
    if "replay_ratio" in agent:
        if list(agent["hidden"]) != [64, 64]:
            return "has a Q-network with agent.hidden=[64,64] alone"
        if round(agent["replay_ratio"] * settings["num_envs"]) < 1:
            return "makes at least one update per vector step: raise num_envs"
    return None


def differences(settings: dict[str, Any]) -> list[str]:
    """How its training differs from rlx's."""
    agent = settings["agent"]
    found = []
    if agent["optimizer"] != "adam":
        found.append("Adam")
    if "replay_ratio" in agent:
        found.append("squared loss")
        if agent["n_steps"] > 1:
            found.append("one-step returns")
        if agent["average_tau"] < 1:
            found.append("no averaged weights")
        if settings["num_envs"] > 1:
            found.append("the target moves once per vector step")
    return found


def make(settings: dict[str, Any], seeds: int) -> Any:
    """A function that trains all seeds for some iterations, and returns the environment steps."""
    if settings["threads"] == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ.setdefault("XLA_FLAGS", flags)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import gymnax
    import jax
    import rejax
    from jax import numpy as jnp

    config = settings["agent"]
    num_envs = settings["num_envs"]
    env, env_params = gymnax.make(settings["env_id"])
    options = {
        "env": env,
        "env_params": env_params.replace(max_steps_in_episode=settings["max_episode_steps"]),
        "learning_rate": config["learning_rate"],
        "gamma": config["discount"],
        "num_envs": num_envs,
        "max_grad_norm": config["max_grad_norm"] or jnp.inf,
        "total_timesteps": 1_000_000,
    }
    if "replay_ratio" in config:
        algorithm = rejax.DQN.create(
            agent_kwargs={"activation": "relu"},
            num_epochs=round(config["replay_ratio"] * num_envs),
            ddqn=config["double"],
            buffer_size=config["buffer_size"],
            fill_buffer=config["batch_size"],
            batch_size=config["batch_size"],
            polyak=1 - config["target_tau"],
            target_update_freq=config["target_every"],
            **options,
        )
        iteration = num_envs
    else:
        algorithm = rejax.PPO.create(
            agent_kwargs={
                "activation": config["activation"],
                "hidden_layer_sizes": list(config["hidden"]),
            },
            num_steps=config["rollout_steps"],
            num_epochs=config["epochs"],
            num_minibatches=config["minibatches"],
            gae_lambda=config["gae_lambda"],
            clip_eps=config["clip"] or jnp.inf,
            vf_coef=config["value_coefficient"],
            ent_coef=config["entropy_coefficient"],
            normalize_observations=config["normalise_obs"],
            normalize_rewards=config["normalise_reward"],
            **options,
        )
        iteration = num_envs * config["rollout_steps"]
    iterations = -(-512 // iteration)

    # `init_state` makes a class of its own at every call: lists of leaves are passed around.
    first = algorithm.init_state(jax.random.key(0))
    structure = jax.tree.structure(first)
    # Counters are the same in all seeds and get no axis of them: a condition on one then stays a
    # condition, as where the whole training is one call.
    axes = [
        None if _is_counter(jax.tree_util.keystr(path), jnp.asarray(leaf), jnp) else 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(first)
    ]

    def trained(leaves: list[Any]) -> list[Any]:
        state = jax.tree.unflatten(structure, leaves)
        state = jax.lax.fori_loop(
            0, iterations, lambda _, state: algorithm.train_iteration(state), state
        )
        return jax.tree.leaves(state)

    train = jax.jit(jax.vmap(trained, (axes,), axes), donate_argnums=0)
    start = jax.vmap(lambda key: jax.tree.leaves(algorithm.init_state(key)), 0, axes)
    leaves = jax.jit(start)(jax.random.split(jax.random.key(0), seeds))

    def advance() -> int:
        nonlocal leaves
        leaves = jax.block_until_ready(train(leaves))
        return seeds * iterations * iteration

    steps = 0
    while steps <= 2 * config.get("batch_size", 0) * seeds:
        steps += advance()
    return advance


def _is_counter(name: str, leaf: Any, jnp: Any) -> bool:
    """Whether a part of a training's state counts something that all seeds have in common."""
    whole = jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == jnp.bool_
    # Running moments begin as whole numbers.
    return bool(whole) and leaf.ndim == 0 and "rms_state" not in name
