"""Does GRPO make the agent better? A small model from random weights, on tasks whose answers are computed."""
