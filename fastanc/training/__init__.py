"""The trainer: from a configuration to its parts, the step, the run around it, and what it writes."""
