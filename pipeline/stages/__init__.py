"""The stages, one file each, in the order of the notebook's way: read, exact, near, rules, fetch, data, render."""
