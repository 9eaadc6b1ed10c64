"""One file per method; a method is found by its file, nothing else has to be edited."""
