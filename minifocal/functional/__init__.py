"""The mathematics: pure functions, one operation per file, each with its way back beside it.

`op_forward(...) -> (y, cache)` and `op_backward(dy, cache) -> gradients`. The cache is a NamedTuple of exactly
what the way back needs. Nothing here holds a parameter, keeps a state or names an array library.
"""
