"""How the passes of a network are computed: packed rows, tasks side by side, second order. Nothing here changes what.

Imports without Ray and without DeepSpeed, and nothing of `distmeta.models`, which is built on it.
"""
