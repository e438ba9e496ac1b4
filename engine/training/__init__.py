"""The recipe, the loop and its checkpoints."""
