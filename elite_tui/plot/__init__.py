"""Draws curves as characters: data reduction, axes, and dot positions. Contains no widgets."""
