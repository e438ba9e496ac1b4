"""The sub-commands of engine, one a file, imported when they are called."""
