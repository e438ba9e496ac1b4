"""The headless engine, which does everything that the wizard does."""

__version__ = "0.1.0"
