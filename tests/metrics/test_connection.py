"""How a Prometheus is reached: credentials, certificates, and every way of not answering."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from servingplan.calibration.readings import Found
from servingplan.controller.prometheus.connection import Source

SECRETS = ("s3cret", "t0ken")


@pytest.fixture(scope="module")
def world(make_world):
    return make_world()


def reply(handler, status, body, kind="application/json"):
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def forwarding(world, allowed=lambda headers: True, seen=None):
    """Passes questions on to Prometheus if their headers are allowed."""

    def answer(handler, body):
        if seen is not None:
            seen.append(handler.path)
        if not allowed(handler.headers):
            reply(handler, 401, b"who is s3cret t0ken?", "text/plain")
            return
        question = urllib.request.Request(world.prometheus.url + handler.path, body, method=handler.command)
        with urllib.request.urlopen(question, timeout=5) as whole:
            reply(handler, whole.status, whole.read())

    return answer


def reading_from(world, url, **fields):
    return world.read(world.asked("llm", source=Source(url, 1.0, **fields)))


def assert_answers(reading):
    assert (reading.found, reading.error) == (Found.AWAITED, "")


def assert_away(reading, *words):
    assert reading.found is Found.UNREACHABLE
    assert all(word in reading.error for word in words), reading.error
    assert not any(secret in reading.error for secret in SECRETS)
    assert reading.error.endswith(".")


def test_basic_authentication_reads_its_files(world, serve, tmp_path):
    wanted = "Basic " + base64.b64encode(b"user:s3cret").decode()
    server = serve(forwarding(world, lambda headers: headers["authorization"] == wanted))
    (tmp_path / "user").write_text("user\n")
    (tmp_path / "password").write_text("s3cret\n")
    files = {"username_file": str(tmp_path / "user"), "password_file": str(tmp_path / "password")}
    assert_answers(reading_from(world, server.url, **files))
    (tmp_path / "password").write_text("s3cret-and-wrong")
    assert_away(reading_from(world, server.url, **files), "answers 401")
    assert_away(reading_from(world, server.url), "answers 401")
    assert_away(reading_from(world, server.url, **files | {"password_file": str(tmp_path / "none")}), "none", "cannot be read")


def test_a_bearer_token_is_read_anew_for_every_question(world, serve, tmp_path):
    valid = ["t0ken-1"]
    server = serve(forwarding(world, lambda headers: headers["authorization"] == f"Bearer {valid[0]}"))
    (tmp_path / "token").write_text("t0ken-1\n")
    assert_answers(reading_from(world, server.url, bearer_token_file=str(tmp_path / "token")))
    valid[0] = "t0ken-2"
    assert_away(reading_from(world, server.url, bearer_token_file=str(tmp_path / "token")), "answers 401")
    (tmp_path / "token").write_text("t0ken-2\n")
    assert_answers(reading_from(world, server.url, bearer_token_file=str(tmp_path / "token")))


def test_credentials_do_not_follow_a_redirect(world, serve, tmp_path):
    seen = []
    other = serve(forwarding(world, seen=seen))

    def redirect(handler, _):
        handler.send_response(307)
        handler.send_header("location", other.url + handler.path)
        handler.send_header("content-length", "0")
        handler.end_headers()

    (tmp_path / "token").write_text("t0ken")
    assert_away(reading_from(world, serve(redirect).url, bearer_token_file=str(tmp_path / "token")), "answers 307")
    assert seen == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of loopback that vouches for itself, and its key, in one PEM file."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "prometheus")])
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
    builder = builder.add_extension(loopback, critical=False)
    made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = tmp_path_factory.mktemp("tls") / "loopback.pem"
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return path


def test_only_a_certificate_of_the_given_authority_is_trusted(world, serve, certificate, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = serve(forwarding(world), context)
    assert_answers(reading_from(world, server.url, ca_file=str(certificate)))
    assert_away(reading_from(world, server.url), "not trusted")
    assert_away(reading_from(world, server.url, ca_file=str(tmp_path / "none.pem")), "none.pem")


BODIES = {
    "a page": b"<html>log in</html>",
    "no data": b"{}",
    "a list": b"[1]",
    "a scalar": b'{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}',
    "nothing": b"",
    "no time": b'{"status":"success","data":{"resultType":"vector","result":[]}}',
    "foreign labels": b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{"a":1},"value":[1,"2"]}]}}',
    "no labels": b'{"status":"success","data":{"resultType":"vector","result":[{"metric":7,"value":[1,"2"]}]}}',
    "endless time": b'{"data":{"result":[{"metric":{"part":"now"},"value":[1,"1e300"]}]}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_an_answer_that_is_not_prometheus_is_no_measurement(world, serve, body):
    server = serve(lambda handler, _: reply(handler, 200, body))
    assert_away(reading_from(world, server.url), "not Prometheus'")


def test_a_refusal_is_told_in_the_servers_words(world, serve):
    server = serve(lambda handler, _: reply(handler, 503, b'{"status":"error","error":"query queue is full"}'))
    assert_away(reading_from(world, server.url), "answers 503: query queue is full")


def test_an_address_that_cannot_be_asked_is_told_without_what_stands_before_the_host(world, port):
    assert_away(reading_from(world, f"http://user:s3cret@127.0.0.1:{port()}"), "cannot be reached")
    assert_away(reading_from(world, "ftp://user:s3cret@127.0.0.1"), "cannot be asked")


@pytest.fixture
def silent():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def trickling(serve):
    """Answers one byte at a time, so that no single wait is long."""
    ended = threading.Event()

    def answer(handler, _):
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        while not ended.wait(0.05):
            handler.wfile.write(b" ")

    yield serve(answer).url
    ended.set()


@pytest.mark.parametrize("kind", ["silent", "trickling"])
def test_a_server_that_hangs_holds_up_no_other(world, read_all, request, kind):
    hanging = Source(request.getfixturevalue(kind), 1.0, timeout_s=0.5)
    well, ill = world.asked("llm"), replace(world.asked("llm", source=hanging), key="ill")
    began = time.monotonic()
    found = read_all(well, ill)
    assert time.monotonic() - began < 5
    assert_answers(found["llm/plan"])
    assert_away(found["ill"], "did not answer within 0.5 s")


def test_a_prometheus_that_is_killed_is_away_until_it_is_back(world):
    assert_answers(world.read(world.asked("llm")))
    world.prometheus.kill()
    assert_away(world.read(world.asked("llm")), "cannot be reached")
    world.prometheus.start()
    assert_answers(world.read(world.asked("llm")))
