"""Text from a model: prompts of any length by tiles, sampling, and text that a terminal may show."""
