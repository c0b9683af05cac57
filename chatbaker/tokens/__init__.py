"""Text to token ids and back: tokenizer, chat format, token shards, mixing and loading."""
