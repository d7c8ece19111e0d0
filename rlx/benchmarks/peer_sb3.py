"""Stable-Baselines3's agent of the same kind and settings, on copies of Gymnasium's env."""

from typing import Any

PROGRAM = "SB3"
NEEDS = ("stable_baselines3",)
ONE_SEED = True


def refusal(settings: dict[str, Any]) -> str | None:
    """Why it cannot train this."""
    agent = settings["agent"]
    if agent["_target_"] not in ("rlx.agents.dqn.DQN", "rlx.agents.ppo.PPO"):
        return "has no such agent"
    if agent.get("recurrent"):
        return "has no agent with memory"
    if settings["env_id"] is None:
        return "needs an env that Gymnasium has too"
    if len(settings["obs_shape"]) != 1:
        return "is compared on flat observations alone"
    return None


def differences(settings: dict[str, Any]) -> list[str]:
    """How its training differs from rlx's."""
    agent = settings["agent"]
    found = []
    if agent.get("n_steps", 1) > 1:
        found.append("one-step returns")
    if agent.get("double"):
        found.append("no double Q-learning")
    if agent.get("normalise_obs") or agent.get("normalise_reward"):
        found.append("nothing normalised")
    if agent.get("average_tau", 1) < 1:
        found.append("no averaged weights")
    return found


def make(settings: dict[str, Any], seeds: int) -> Any:
    """A function that learns for some vector steps, and returns the environment steps."""
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(settings["threads"])
    config = settings["agent"]
    num_envs = settings["num_envs"]
    limit = {"max_episode_steps": settings["max_episode_steps"]}
    env = make_vec_env(settings["env_id"], num_envs, env_kwargs=limit)
    options = {
        "learning_rate": config["learning_rate"],
        "gamma": config["discount"],
        "device": "cpu",
        "policy_kwargs": {"net_arch": list(config["hidden"])},
    }
    if "replay_ratio" in config:
        kind = stable_baselines3.DQN
        steps = -(-200 // num_envs) * num_envs
        updates = config["replay_ratio"] * num_envs
        # SB3 counts vector steps between updates, or updates after each.
        every = max(1, round(1 / updates))
        options |= {
            "buffer_size": config["buffer_size"],
            "learning_starts": config["batch_size"],
            "batch_size": config["batch_size"],
            "tau": config["target_tau"],
            "target_update_interval": config["target_every"],
            "train_freq": every,
            "gradient_steps": max(1, round(updates * every)),
        }
    else:
        steps = config["rollout_steps"] * num_envs
        options |= {
            "n_steps": config["rollout_steps"],
            "gae_lambda": config["gae_lambda"],
            "ent_coef": config["entropy_coefficient"],
            "normalize_advantage": config["normalise_advantage"],
        }
        if config["epochs"] == config["minibatches"] == 1:
            kind = stable_baselines3.A2C
        else:
            kind = stable_baselines3.PPO
            options |= {"batch_size": steps // config["minibatches"], "n_epochs": config["epochs"]}
        # A short rollout is not timed alone.
        steps *= max(1, 512 // steps)
    model = kind("MlpPolicy", env, **options)

    def advance() -> int:
        model.learn(steps, reset_num_timesteps=False)
        return steps

    return advance
