"""What the wizard asks and plans before there is a run."""
