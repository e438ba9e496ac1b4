"""What several tests need: tiny random models, windows, and a session that records."""
