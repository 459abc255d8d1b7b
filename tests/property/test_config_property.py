"""Any configuration is read or refused by one of its codes; seeds are fixed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hypothesis import example, given, settings
from hypothesis import strategies as st

from executor import config
from executor.config import KEYS, Config
from executor.core import subjects
from executor.errors import ExecutorError

fixed = settings(
    derandomize=True, deadline=None, max_examples=250, database=None, print_blob=True
)  # fmt: skip

FOLDER: Final = Path("no-such-folder")
TABLES: Final = ("tenant", "grant", "publisher", "executor", "trust")
WORDS: Final = sorted(
    {key for keys in KEYS.values() for key in keys}
    | {"name", "ceiling", "raw_bodies", "queue_max_mib", "tenant", "task", "signer", "why", "log",
       "kv", "limits", "tasks", "key", "tenants", "revoked", "capabilities", "prefix", "mode"}
)  # fmt: skip

scalars = st.sampled_from(
    ["0", "1", "-1", "7", "99999999999999999999", "1.5", "nan", "true", "false", '""', '"acme"',
     '"*"', '"a b"', '"log"', '"read"', '"required"', '"ed25519:x"', '"acme/*"', '"é"',
     "2020-01-01", "2020-01-01T00:00:00Z", '"""\n[grant]\n"""', "'x'", "[]", "{}"]
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda found: f"[{', '.join(found)}]")
        | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3).map(
            lambda found: "{" + ", ".join(f"{k} = {v}" for k, v in found.items()) + "}"
        )
    ),
    max_leaves=6,
)  # fmt: skip
headers = st.sampled_from(
    [f"[{name}]" for name in [*KEYS, "trust", "grant", "unheard"]]
    + [f"[[{name}]]" for name in [*TABLES, "nats"]]
)
sections = st.tuples(
    headers, st.dictionaries(st.sampled_from(WORDS), values, max_size=5)
).map(
    lambda found: "\n".join([found[0], *(f"{k} = {v}" for k, v in found[1].items())])
)  # fmt: skip
documents = st.lists(sections, max_size=5, unique_by=lambda text: text.partition("\n")[0]).map(
    "\n".join
)
# Keys with values in their range, and tables that hold together.
settings_ = st.dictionaries(
    st.sampled_from(
        [("limits", key) for key in KEYS["limits"]] + [("delivery", "attempts_max")]
    ),
    st.integers(1, 64), max_size=4,
).map(lambda found: "\n".join(f"{s}.{k} = {v}" for (s, k), v in found.items()))  # fmt: skip
tables = st.lists(
    st.sampled_from(
        ['task = "thumbs"', "log = true", "kv = { mode = 'write' }", "limits = { fuel = 7 }"]
    ),
    unique=True,
).map(
    lambda found: "\n".join(
        ['[[tenant]]\nname = "acme"\n[[grant]]\ntenant = "acme"\nwhy = "tests"', *found]
    )
)
valid = st.tuples(settings_, tables).map("\n".join)
texts = valid | documents | st.text(max_size=60) | st.text('[]{}="\n.#a1_ ', max_size=60)
variables = st.dictionaries(
    st.sampled_from(
        [f"EXECUTOR_{s.upper()}_{k.upper()}" for s, keys in KEYS.items() for k in keys]
        + ["EXECUTOR_NATS_", "EXECUTOR_NATS_TOKEN", "EXECUTOR_X_Y", "PATH"]
    ),
    st.text(max_size=20) | values,
    max_size=3,
)


def read(text: str, environ: Mapping[str, str]) -> Config | ExecutorError:
    """The configuration in `text`, or why it is refused."""
    try:
        return config.parse(text, folder=FOLDER, name="executor.toml", environ=environ)
    except ExecutorError as error:
        return error


@fixed
@given(texts, variables)
@example("nats = 3", {})
@example("[[limits]]", {})
@example("a = " + "[" * 5_000, {})
@example("[limits]\nfuel = " + "9" * 5_000, {})
def test_any_text_is_a_configuration_or_refused(text: str, environ: dict[str, str]) -> None:
    """No file and no environment raises anything but the codes of configuration."""
    got = read(text, environ)
    if isinstance(got, ExecutorError):
        assert got.code.startswith("config.")
        assert got.detail
        return
    assert got.values.keys() == got.sources.keys()
    for name, value in got.values.items():
        section, _, key = name.partition(".")
        spec = KEYS[section][key]
        assert type(value) is type(spec.default)
        for number in value if isinstance(value, tuple) else [value]:
            assert not isinstance(number, int) or spec.low <= number <= spec.high
    assert subjects.is_token(got.text("host.environment"))
    tenants = [tenant.name for tenant in got.policy.tenants]
    assert len(set(tenants)) == len(tenants)
    assert all(subjects.is_token(name) for name in tenants)
    for grant in got.policy.grants:
        assert grant.tenant in tenants
        assert grant.why.strip()


@fixed
@given(texts, variables)
def test_the_same_text_gives_the_same_answer(text: str, environ: dict[str, str]) -> None:
    """Neither a value nor the order of the errors depends on chance."""
    one, two = read(text, environ), read(text, dict(reversed(environ.items())))
    if isinstance(one, ExecutorError):
        assert str(one) == str(two)
    else:
        assert one == two
