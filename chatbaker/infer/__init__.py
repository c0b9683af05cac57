"""Answers from a model: one `Engine` protocol, three engines (llama.cpp, PyTorch, a remote URL)."""
