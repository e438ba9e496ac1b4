"""The wizard and the monitor: a Textual app that never imports torch."""
