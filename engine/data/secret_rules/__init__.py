"""Rules that find secrets in text: formats that announce themselves, telling names, places, and what is encoded."""
