"""Vectors of inputs: the files they are kept in, and what is near to what."""
