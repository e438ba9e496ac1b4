"""Gauges, charts and panes shared by the screens."""
