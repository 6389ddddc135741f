"""One training run on any number of ranks.

Importing this package starts nothing: ``mpi4py.MPI`` starts MPI on import, so only ``hpc.comm`` may import
it, inside a function. Read ``hpc.rank`` first (a rank from start to end), then ``hpc.run`` (it puts a run
together), then ``hpc.engine`` (the loop).
"""
