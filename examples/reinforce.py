"""A custom trainer over `JupyterQAEnv`: REINFORCE, in about 30 lines of loop.

The policy is as small as can be: a softmax over a few ways to work, with one weight each. It shows where a real
policy plugs in: text out, text in, a reward at the end. Run: python examples/reinforce.py --updates 10
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from jupyter_env import JupyterQAEnv, TaskPool


def say(tool: str, **arguments: str) -> str:
    return "<tool_call>\n" + json.dumps({"name": tool, "arguments": arguments}) + "\n</tool_call>"


def strategies(reference_code: str) -> list[list[str]]:
    """Ways to work on a task; in place of a language model, one of them happens to know the right code."""
    return [[], ["print(42)"], ["import os; print(len(os.listdir('data')))"], [reference_code]]


def train(pool: TaskPool, updates: int, batch: int = 4, learning_rate: float = 1.0, seed: int = 0) -> list[float]:
    """Train the policy; returns the mean reward of each update's batch."""
    rng = np.random.default_rng(seed)
    weights = np.zeros(4)
    curve: list[float] = []
    env = JupyterQAEnv(pool)
    env.reset(seed=seed)
    for update in range(updates):
        chances = np.exp(weights) / np.exp(weights).sum()
        choices, rewards = [], []
        for _ in range(batch):
            observation, info = env.reset()
            choice = rng.choice(len(weights), p=chances)
            for code in strategies(pool.get(info["task_id"]).reference_code or "")[choice]:
                observation, *_ = env.step(say("execute_code", code=code))
            answer = observation.strip().splitlines()[-1]
            _, reward, *_ = env.step(say("final_answer", answer=answer))
            choices.append(choice)
            rewards.append(reward)
        advantages = np.array(rewards) - np.mean(rewards)
        for choice, advantage in zip(choices, advantages, strict=True):
            gradient = -chances
            gradient[choice] += 1.0  # of the log-probability of what was done
            weights += learning_rate * advantage * gradient
        curve.append(float(np.mean(rewards)))
        print(f"update {update + 1:3}  mean reward {curve[-1]:.2f}  chances {np.round(chances, 2)}")
    env.close()
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(TaskPool.procedural(8, seed=arguments.seed), arguments.updates, seed=arguments.seed)
