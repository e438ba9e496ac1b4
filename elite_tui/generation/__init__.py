"""Text written by a run's models: what was asked, what came, and the process that answers."""
