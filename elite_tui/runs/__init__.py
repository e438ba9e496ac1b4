"""Data and logic of the run screens: events folded to views, curves, text panels, and controllers."""
