"""The command line, sweeps and submission. Runs on a login node: starting it imports neither torch nor mpi4py."""
