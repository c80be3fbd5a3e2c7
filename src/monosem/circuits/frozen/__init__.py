"""One forward pass held still: sites, linear steps between them, and what happens when something is changed."""
