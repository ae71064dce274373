"""How the loss depends on the size of a model and on the tokens it learns from, fitted to runs."""
