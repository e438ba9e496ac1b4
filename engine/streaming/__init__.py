"""The exact streamed step: forward and backward tile by tile in bounded GPU memory."""
