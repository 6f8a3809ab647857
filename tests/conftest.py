"""One test bed per run, started while the other tests pass, and only if a selected test asks for it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from testbed.bed import DEMO_NODES, Bed, Settings
from testbed.cluster import Cluster

# The run that decides is the same every time; what it has not met is looked for with --hypothesis-profile=search.
settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("same")

_BED = pytest.StashKey[Bed]()
# Loading a real model takes minutes; two seconds are enough to see that nothing is sent to a replica before it is ready.
_IMAGE_ENV = {"vllm/vllm-openai": {"SIM_COLD_START_S": "2"}}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kubeconfig", type=Path, help="run the end-to-end tests on this cluster instead of the test bed")


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    wanted = any("bed" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not config.getoption("--kubeconfig") and not config.getoption("collectonly"):
        config.stash[_BED] = Bed(DEMO_NODES, Settings(nodes=(), image_env=_IMAGE_ENV, scrape_interval_s=1.0))
        config.stash[_BED].start()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _BED in config.stash:
        config.stash[_BED].stop()


@pytest.fixture(scope="session")
def bed(request: pytest.FixtureRequest) -> Cluster:
    """The cluster under test; this process stands inside its network from here on."""
    given: Path | None = request.config.getoption("--kubeconfig")
    if given is not None:
        return Cluster(given.resolve())
    started = request.config.stash[_BED]
    started.wait_ready()
    started.enter()
    return started


@pytest.fixture
def node_control(bed: Cluster) -> Bed:
    """The bed, for tests that kill nodes or look behind the API server."""
    if not isinstance(bed, Bed):
        pytest.skip("nodes of another cluster are not ours to kill")
    return bed


@pytest.fixture
def namespace(bed: Cluster) -> Iterator[str]:
    """A namespace of the test's own, deleted with everything in it; its accelerators are free again at the end."""
    name = f"test-{secrets.token_hex(4)}"
    bed.kubectl("create", "namespace", name)
    yield name
    # Before the namespace, whose own deletion waits five seconds before it looks at pods.
    bed.kubectl("delete", "deployments,jobs,pods", "--all", "-n", name, "--timeout=60s")
    bed.kubectl("delete", "namespace", name, "--wait=false")
