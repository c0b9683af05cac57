"""The baked model in the forms that other programs read: a Hugging Face folder with its card, and GGUF files."""
