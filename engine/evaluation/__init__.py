"""Evaluation: perplexity and completed functions, before and after training."""
