"""Talking to a model: the conversation, and the terminal in front of it."""
