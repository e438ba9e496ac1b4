"""Text generation with a run's models: requests, answers, and the process that serves them."""
