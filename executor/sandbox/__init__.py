"""The room where guests run: started as a process, never imported by the supervisor."""
