"""Text generation: prompts of any length by tiles, sampling, and text that is safe on a terminal."""
