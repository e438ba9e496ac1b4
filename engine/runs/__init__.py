"""Run directory, run index, journal, control socket, commands, and the session of a training process."""
