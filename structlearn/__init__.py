"""Training methods that look after a network's structure, learning rates and regularisation.

Each method is plain PyTorch and can be used alone, in anybody's training loop: import the module that
holds it. Importing this package itself imports nothing, so that a tool that only asks for the version
does not wait for torch.
"""

__version__ = "0.1.0"
