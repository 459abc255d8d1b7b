"""The command line: one file a family of verbs, rendering in one place."""
