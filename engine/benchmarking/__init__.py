"""Measurements behind `engine bench`: what the documents' tables are made from."""
