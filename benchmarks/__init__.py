"""Scripts that measure the engine and the terminal app; each says in its docstring how it is run."""
