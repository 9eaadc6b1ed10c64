"""Stored images decoded, cropped and resized by DALI or, without it, by torchvision."""
