"""What authors of tasks need: the ABI on one page, a header or module a language, the build."""
