"""The trust port over a configuration: what its own file grants, or the signed policy it is under.

[[publisher]], [[executor]] and `revoked`. With `trust.source = "file"` whoever can write the file
decides: for development and the first steps. With "tuf" a verified policy was put in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from executor.config import Config
from executor.core.glass import Glass
from executor.core.policy import Policy, Publisher
from executor.core.seal import Opener


class FileTrust:
    """See the module. `replace` puts a newly read configuration in force."""

    def __init__(self, config: Config) -> None:
        self._glass = Glass()  # what is broken open outlives a change of policy, judged anew
        self.replace(config)

    def replace(self, config: Config) -> None:
        """Believe another configuration from now on."""
        self._config = config
        self._opener = config.opener(self._glass)

    def publishers(self, tenant: str, task: str) -> Sequence[Publisher]:
        """The keys that may sign modules of this task; revoked ones too, to name them."""
        return [p for p in self._config.publishers if p.may_sign(tenant, task)]

    def policy(self) -> Policy:
        """Tenants, grants, ceilings."""
        return self._config.policy

    def opener(self) -> Opener:
        """Checks what executors, operators and submitters signed."""
        return self._opener

    def is_revoked(self, *names: str) -> bool:
        """Whether a digest or key id is revoked."""
        return any(name in self._config.revoked for name in names)
