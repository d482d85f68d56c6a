"""Faces of the environment for other libraries; each imports its library only where it must."""
