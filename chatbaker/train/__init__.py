"""Training: one loop, used by pretrain and sft alike, with what it needs around it."""
