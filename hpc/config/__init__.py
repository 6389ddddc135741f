"""The configuration of a run: frozen dataclasses, read from YAML, checked before any rank starts.

Imports neither torch nor MPI, so a login node can check a thousand configurations in seconds.
"""
