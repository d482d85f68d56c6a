"""The tiny agent: a Qwen3 of five million weights, taught from nothing to answer questions about tables."""
