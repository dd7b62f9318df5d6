"""Danqing 丹青: a complete Stable Diffusion system."""

__version__ = "0.1.0"
