"""guidex's guidance in diffusers' modular pipelines."""

try:
    import diffusers  # noqa: F401
except ImportError as error:
    raise ImportError(f"{error}: install it in the clone, pip install '.[diffusers]'") from error

from guidex.diffusers.guider import GuidexGuider, Reference

__all__ = ["GuidexGuider", "Reference"]
