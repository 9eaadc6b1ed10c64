"""Stored images decoded, cropped and resized by DALI."""
