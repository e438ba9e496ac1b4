"""Connects the app to the engine through blocking calls, the workers that make them, and child processes."""
