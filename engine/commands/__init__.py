"""Sub-commands of engine, one per file, imported when they are called."""
