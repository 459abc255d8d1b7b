"""One small file for each contender: its worker, and a driver that submits and reads results.

They run in virtual environments of their own, where nothing of this project is installed.
"""
