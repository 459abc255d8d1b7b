"""NATS: the only importer of nats-py. Rules, code map and measurements: README.md here."""
