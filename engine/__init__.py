"""The headless engine: everything that the wizard does, without the wizard."""

__version__ = "0.1.0"
