"""Build drivers: a task's folder becomes one Wasm file with its manifest, the same bytes anywhere.

Runs as a child process (`python -m guest_sdk.build`) of whoever builds; imports no sandbox.
"""
