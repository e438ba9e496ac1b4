"""Shared test helpers: tiny random models, windows, and a recording session."""
