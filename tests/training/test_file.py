"""The predictor's file: what it keeps, and what is refused."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from servingplan.routing import predictor_file
from servingplan.routing.predictor_file import pack, unpack


@pytest.fixture(scope="module")
def data(fitted) -> bytes:
    return pack(fitted.predictor)


def arrays_of(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def signed(about: dict, arrays: dict) -> bytes:
    """A file whose hash is right, whatever is in it."""
    about = {**about, "sha256": predictor_file._digest(about, arrays)}
    return npz(**arrays, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8))


def opened(data: bytes) -> tuple[dict, dict]:
    arrays = arrays_of(data)
    about = json.loads(arrays.pop("about").tobytes())
    about.pop("sha256")
    return about, arrays


def refused(data: bytes) -> str:
    with pytest.raises(ValueError) as raised:
        unpack(data)
    return str(raised.value)


def test_what_is_read_predicts_as_what_was_written(fitted, data, prompts) -> None:
    read = unpack(data)
    assert (read.models, read.layout, read.shape) == (("a", "b", "c"), "made up", fitted.predictor.shape)
    before, after = (each.predict(prompts.features) for each in (fitted.predictor, read))
    np.testing.assert_allclose(after.quality, before.quality, atol=0.01)
    np.testing.assert_allclose(after.output_tokens, before.output_tokens, rtol=0.02)


def test_packing_again_changes_nothing(data) -> None:
    assert pack(unpack(data)) == data


@pytest.mark.parametrize("foreign", [b"", b"hello", b"PK\x03\x04 not a zip", b"\x80\x04N.", npz(about=np.zeros(3, np.uint8))])
def test_a_foreign_file_is_refused(foreign) -> None:
    assert refused(foreign) == "this is no predictor: give a file that servingplan train wrote"


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    trace = tmp_path / "loaded"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    trap = np.array([Trap()], dtype=object)
    stream = io.BytesIO()
    np.savez(stream, about=trap)
    for harmful in (stream.getvalue(), pickle.dumps(Trap())):
        assert refused(harmful) == "this is no predictor: give a file that servingplan train wrote"
    assert not trace.exists()
    with pytest.raises(FileExistsError):
        # The trap is a real one.
        trace.mkdir()
        pickle.loads(pickle.dumps(Trap()))


def test_another_format_is_named(data) -> None:
    about, arrays = opened(data)
    assert refused(signed({**about, "format": 9}, arrays)).startswith("the predictor has format 9 and this version reads 1")


def test_a_changed_number_is_noticed(data) -> None:
    arrays = arrays_of(data)
    arrays["mean"] = arrays["mean"] + np.float32(0.1)
    assert "do not match its hash" in refused(npz(**arrays))


def test_a_missing_array_is_noticed(data) -> None:
    arrays = arrays_of(data)
    del arrays["targets"]
    assert "do not match its hash" in refused(npz(**arrays))


@pytest.mark.parametrize("cut", [10, 1000, -1])
def test_a_file_cut_short_is_refused(data, cut) -> None:
    assert refused(data[:cut]) == "this is no predictor: give a file that servingplan train wrote"


@pytest.mark.parametrize("name", ["base", "mean", "rotation", "targets", "calibration", "length_ratio", "trends", "dual"])
def test_arrays_that_do_not_fit_together_are_refused(data, name) -> None:
    about, arrays = opened(data)
    array = arrays[name]
    arrays[name] = np.concatenate((array, np.zeros((1, *array.shape[1:]), dtype=array.dtype)))
    assert refused(signed(about, arrays)).endswith("write it again with servingplan train")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": {"trend": "magic"}}, {"shape": {"no": 1}}, {"shape": None}, {"shape": {"trend": "mean", "neighbours": -1}},
        {"shape": {"neighbours": 1.5}}, {"shape": {"width": 0.0}}, {"shape": {"width": float("nan")}}, {"reach": float("nan")},
        {"shape": {"gamma": float("inf")}}, {"models": []}, {"models": [1, 2, 3]}, {"models": None}, {"reach": "far"},
    ],
)  # fmt: skip
def test_a_description_that_makes_no_sense_is_refused(data, change) -> None:
    about, arrays = opened(data)
    shape = (
        {**about["shape"], **change["shape"]} if isinstance(change.get("shape"), dict) else change.get("shape", about["shape"])
    )
    assert refused(signed({**about, **change, "shape": shape}, arrays)).endswith("write it again with servingplan train")


@pytest.mark.parametrize("name", ["rotation", "mean", "centre", "scale", "base_scale", "spread"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 5e4])
def test_numbers_that_no_prediction_can_be_made_of_are_refused(data, name, value) -> None:
    about, arrays = opened(data)
    arrays[name] = np.full_like(arrays[name], value)
    assert refused(signed(about, arrays)).endswith("write it again with servingplan train")


def test_a_file_that_unpacks_to_too_much_is_refused_unread() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("about.npy", "w") as member:
        for _ in range(65):
            member.write(bytes(2**20))
    assert "unpacks to more than 64 MiB" in refused(stream.getvalue())
