"""The operations of `functional/` made fast for a CPU: same names, arguments, results and caches.

Read the twin in `functional/` first. Here are the tricks: memory that is used again (`workspace`), blocks that fit into
a cache and threads (`numpy_ops`), compiled kernels (`numba_ops`). Each `OVERRIDES` names what replaces what.
"""
