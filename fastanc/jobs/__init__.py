"""One file a word of the command."""
