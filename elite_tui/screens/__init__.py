"""The app's screens, one per file, each with its style sheet beside it."""
