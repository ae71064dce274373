"""What protein models lend to `triune lens`."""
