"""A run as its rooms show it: what it said, in curves, figures and words, and what can be asked of it."""
