"""Recipes: YAML files that fix an experiment."""
