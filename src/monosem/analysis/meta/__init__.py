"""Meta-SAEs: dictionaries of a dictionary's decoder rows."""
