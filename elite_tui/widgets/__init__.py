"""Gauges, charts and panes that the screens share."""
