"""Textual app with the wizard and the run monitor; never imports torch."""
