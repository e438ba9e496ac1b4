"""Formats engine data as text, figures and bars. Pure functions."""
