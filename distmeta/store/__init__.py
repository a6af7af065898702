"""The one place that knows whether a folder is on a disk or at an address: everything else asks for a file by name.

A folder at an address (a run, a sweep, a corpus) has a local one that stands for it (`folders`), and files are carried
from one to the other (`mirror`). One process at a time writes at an address (`claim`). What workers read again and
again a node has once (`cache`).
"""
