"""Text to tokens and back: what may become a control token, and what separates texts."""
