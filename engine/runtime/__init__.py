"""The training process: run directory, journal, queue, control socket, launcher."""
