"""The way to the engine: blocking calls, the workers that make them, child processes."""
