"""How good a model is: zero-shot tasks, bits per byte, register, stop and repetition rate, a judge's opinion."""
