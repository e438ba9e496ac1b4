"""Measurements behind `engine bench` and the documents' tables."""
