"""The network, its loss, its weights on disk and its size. Plain PyTorch that knows nothing of training at scale."""
