"""The training loop, its checkpoints and its recovery from failures."""
