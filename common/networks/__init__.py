"""A network by its name: opening it with its weights, checkpoints, and what a file says of itself."""
