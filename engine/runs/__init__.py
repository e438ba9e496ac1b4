"""A run on disk and its context: directory, index, journal, control socket, commands."""
