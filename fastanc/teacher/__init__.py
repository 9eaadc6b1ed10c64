"""Where the teacher's outputs come from: the network itself, the cache on disk, or both."""
