"""Finding a model and reading what it is: names to files, files to `ModelSpec`. It never reads tensors."""
