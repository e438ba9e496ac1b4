"""Encodes text to tokens and back, and controls which text may become a control token."""
