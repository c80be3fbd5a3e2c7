"""Attribution graphs: traced, checked, pruned, shown, exchanged."""
