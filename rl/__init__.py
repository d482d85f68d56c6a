"""Reinforcement learning: rollouts for TRL's GRPO, a trainer around them, and a proof that it works."""
