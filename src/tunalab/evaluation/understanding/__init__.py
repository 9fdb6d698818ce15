"""Understanding: what a model answers to questions about images."""
