"""Images for the published benchmarks of generation and editing, in their own layouts, and their scores by pluggable models."""
