from structlearn.shrinknets.fold import fold as fold
