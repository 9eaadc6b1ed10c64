"""What test files share: a game and a run that take seconds, images, tars, bad files, forked processes."""
