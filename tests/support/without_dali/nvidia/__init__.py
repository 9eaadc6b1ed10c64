"""Put first on PYTHONPATH, this hides DALI from a process and its children; NVIDIA's other packages stay."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
