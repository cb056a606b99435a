"""Layers: they hold parameters, call an operation of their table, and add to gradients; nothing else.

A new layer goes into a file of its own. `base` says what a layer is, `initializers` how its parameters start.
"""
