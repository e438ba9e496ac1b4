"""Curves as characters: what to draw, on which axes, and where each dot goes. No widgets in here."""
