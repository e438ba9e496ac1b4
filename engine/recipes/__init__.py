"""Composes the other packages into complete jobs, fine-tuning and the learning-rate range test."""
