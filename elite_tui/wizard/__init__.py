"""Logic of the wizard: the draft, its plans and its checks."""
