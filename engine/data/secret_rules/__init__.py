"""Finds secrets in text by formats that announce themselves, telling names, places, and what is encoded."""
