"""The router's pod as the controller makes it: the rendered Envoy and the real picker, joined by a socket."""

from __future__ import annotations

import json
import signal
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from servingplan.api.routing_table import WEIGHT_TOTAL, ClassEntry, Engine, ModelEntry, Picker, Pool, RoutingTable
from servingplan.render.envoy.picker import RECEIPT_HEADER


def _sibling(folder: str, name: str) -> Any:
    path = Path(__file__).parents[1] / folder / f"{name}.py"
    spec = spec_from_file_location(f"picker_{folder}_{name}", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


router_parts, command_parts = _sibling("router", "conftest"), _sibling("picker", "test_command")
REFUSES_NOBODY = {"shed": False, "guard_s": None}


@pytest.fixture
def upstreams(start_upstream):
    return {name: start_upstream(name) for name in ("large", "small")}


@pytest.fixture
def table(upstreams):
    """A plan whose weights send all to the small model, and whose prices want quality."""

    def make() -> RoutingTable:
        engine = Engine(alpha_s=0.01, beta_s=1e-5, gamma_s=1e-9, max_num_seqs=64, max_num_batched_tokens=2048)
        models = []
        for name, upstream in upstreams.items():
            address, port = upstream.address.split(":")
            pool = Pool(name=f"chat-{name}", setup="s", address=address, port=int(port), engine=engine)
            models.append(ModelEntry(name=name, pools=(pool,), weights={pool.name: WEIGHT_TOTAL}))
        chat = ClassEntry(name="chat", weights={"chat-small": WEIGHT_TOTAL}, quality={"large": 0.9, "small": 0.5})
        picker = Picker(per_dollar=0, per_second=0, explain=True, **REFUSES_NOBODY)
        return RoutingTable(namespace="llm", plan="chat", generation=1, models=tuple(models), classes=(chat,), picker=picker)

    return make


@pytest.fixture
def pod(tmp_path, table, upstreams, free_port, until):
    """Envoy and picker of one pod."""
    made = table()
    router = router_parts.Router(tmp_path / "router", made)
    folder = Path(router.paths.picker_socket).parent
    (folder / "table.json").write_text(made.model_dump_json(by_alias=True))
    listed = {f"chat-{name}": [upstream.address] for name, upstream in upstreams.items()}
    (folder / "endpoints.json").write_text(json.dumps(listed))
    picker = command_parts.Command(folder, free_port())
    until(router.is_serving, "Envoy serves")
    until(picker.is_ready, "the picker is ready")
    yield router, picker
    picker.close()
    router.close()


def by(router: Any, count: int, **body: Any) -> Counter[str]:
    return command_parts.ask_many(router, count, **body)


def test_the_pick_decides_the_weights_serve_on_and_a_model_by_name_is_obeyed(pod, until):
    router, picker = pod
    until(lambda: by(router, 1) == {"large": 1}, "Envoy asks the picker")
    assert by(router, 10) == {"large": 10}
    assert by(router, 5, model="small") == {"small": 5}
    assert by(router, 2, model="other") == {"404": 2}
    until(lambda: "servingplan_picker_requests_in_flight 0.0" in picker.get("/metrics")[1], "nothing is in flight")

    picker.process.send_signal(signal.SIGSTOP)
    assert by(router, 3) == {"small": 3}
    picker.process.send_signal(signal.SIGCONT)
    until(lambda: by(router, 1) == {"large": 1}, "Envoy asks the picker again")
    picker.process.kill()
    assert by(router, 10) == {"small": 10}


def test_a_client_is_told_of_the_decision_when_it_asks(pod, until):
    import urllib.request

    router, _ = pod
    until(lambda: by(router, 1) == {"large": 1}, "Envoy asks the picker")

    def header(**sent: str) -> str | None:
        url = f"{router.url}/v1/chat/completions"
        request = urllib.request.Request(url, b'{"prompt": "secret"}', {"content-type": "application/json", **sent})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.headers.get(RECEIPT_HEADER)

    assert header() is None
    receipt = header(**{"x-servingplan-explain": "true"})
    assert receipt
    assert json.loads(receipt)["terms"]["model"] == "large"
    assert "secret" not in receipt


def test_a_request_is_in_flight_until_its_answer_has_ended(pod, upstreams, until):
    import http.client
    from urllib.parse import urlsplit

    router, picker = pod
    until(lambda: by(router, 1) == {"large": 1}, "Envoy asks the picker")
    upstreams["large"].mode = "hold"
    address = urlsplit(router.url)
    client = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    client.request("POST", "/v1/chat/completions", b'{"prompt": "hello"}', {"content-type": "application/json"})
    answer = client.getresponse()
    assert answer.readline() == b"data: large\n"

    def in_flight() -> set[str]:
        shown = ("servingplan_picker_requests_in_flight ", 'servingplan_picker_in_flight{pool="chat-large"} ')
        return {line.split()[-1] for line in picker.get("/metrics")[1].splitlines() if line.startswith(shown)}

    assert in_flight() == {"1.0"}
    upstreams["large"].release()
    assert answer.read().endswith(b"[DONE]\n\n")
    until(lambda: in_flight() == {"0.0"}, "the reservation is released")
    client.close()
