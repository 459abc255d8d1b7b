"""Whom we believe, behind one port: a file for the first steps, or signed metadata."""

from __future__ import annotations

from executor.config import Config


def believed(config: Config) -> Config:
    """The configuration under the policy in force: its own, or the last that was verified.

    Errors  `trust.*`.
    """
    if not config.signed or config.document.grants_anything:
        return config
    from executor.trust.source import Source  # the library takes as long to load as click

    return config.granting(Source.of(config).load().document)
