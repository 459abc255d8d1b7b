"""Example tasks, built: data for `executor demo`, the tests and newcomers."""
