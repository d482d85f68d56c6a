"""Supervised fine-tuning on traces: `accelerate launch sft/train.py --recipe qwen3-4b`."""
