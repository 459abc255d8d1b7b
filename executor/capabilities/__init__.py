"""Capabilities: named groups of host functions, one file each with its bounds and its code.

A file here is pure or touches one thing (a clock, the kernel's random source); it knows neither
the engine nor the network. Which process runs it stands in its docstring.
"""
