"""One pass over a set's files: what they hold, and what is left out, with reasons."""
