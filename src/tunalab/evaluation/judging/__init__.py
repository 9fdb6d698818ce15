"""A vision-language model as judge of generated images: which of several models made the best, or the most varied, of a prompt."""
