"""Language models behind `chat.Model`: any OpenAI-compatible server, and a local one in this process.

Each module imports its library (openai, transformers) when it is itself imported; the base install has neither.
"""
