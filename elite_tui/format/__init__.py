"""What the engine knows, in words, figures and bars for people. Pure."""
