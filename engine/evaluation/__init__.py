"""How good the model is: perplexity before and after."""
