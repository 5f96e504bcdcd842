"""The pictures of the documentation, from a server that runs: `python -m pictures.build`."""
