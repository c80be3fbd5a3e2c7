"""How features of one place make features of another: by the weights, on a text, and through heads."""
