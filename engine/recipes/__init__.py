"""Composes what the other packages offer into whole jobs: fine-tuning, the learning-rate range test."""
