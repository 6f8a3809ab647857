"""The file of a trained predictor: an npz of plain arrays, with its format, its names and a hash inside.

Nothing in it is ever unpickled, and it is refused before anything large is unpacked: it comes from a ConfigMap that others may
write.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servingplan.routing.quality import VECTOR, VECTORS, Array, Predictor, Projection, Shape

FORMAT = 1

MOST_BYTES = 900_000
"""That fit in a ConfigMap, which holds at most 1 MiB, with room for other keys."""

_MOST_UNPACKED_BYTES = 64 * 2**20
_ABOUT = "about"
_HALF = ("rotation", "dual", "linear", "trends", "targets")
_FULL = ("centre", "scale", "weights", "offset", "mean", "spread", "calibration", "length_ratio", "base_scale")
_BASE = "base"
_TYPES = {**dict.fromkeys(_HALF, "float16"), **dict.fromkeys(_FULL, "float32"), _BASE: "int8"}
_LEAST, _MOST = 1e-4, 1e4
"""Of the numbers inside: beyond them a prediction might overflow, and what is no number would reach the decision."""
_TRENDS = ("mean", "linear", "kernel")


def pack(predictor: Predictor) -> bytes:
    """The predictor as a file. Coordinates are kept in one byte, most numbers in two."""
    scale = base_scale(predictor.base)
    projection = predictor.projection
    full = {
        "centre": projection.centre, "scale": projection.scale, "weights": projection.weights, "offset": projection.offset,
        "mean": predictor.mean, "spread": predictor.spread, "calibration": predictor.calibration,
        "length_ratio": predictor.length_ratio, "base_scale": scale,
    }  # fmt: skip
    half = {
        "rotation": projection.rotation, "dual": predictor.dual, "linear": predictor.linear, "trends": predictor.trends,
        "targets": predictor.targets,
    }  # fmt: skip
    arrays: dict[str, NDArray[Any]] = {name: array.astype(np.float32) for name, array in full.items()}
    arrays |= {name: array.astype(np.float16) for name, array in half.items()}
    arrays[_BASE] = np.round(predictor.base / scale).astype(np.int8)
    about = {
        "format": FORMAT,
        "models": list(predictor.models),
        "layout": predictor.layout,
        "shape": asdict(predictor.shape),
        "reach": float(predictor.reach),
    }
    about["sha256"] = _digest(about, arrays)
    arrays[_ABOUT] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def unpack(data: bytes) -> Predictor:
    """The predictor that a file holds.

    Raises:
        ValueError: The file is foreign, damaged, of another format, or far too large; says which in one sentence.
    """
    arrays = _arrays(data)
    about = _about(arrays.pop(_ABOUT, np.zeros(0, dtype=np.uint8)))
    if {name: str(array.dtype) for name, array in arrays.items()} != _TYPES or about.pop("sha256", None) != _digest(
        about, arrays
    ):
        raise ValueError("the predictor is damaged: its contents do not match its hash; write it again with servingplan train")
    numbers = [array for name, array in arrays.items() if name != "targets"]
    if not all(np.isfinite(array).all() and np.abs(array).max(initial=0) < _MOST for array in numbers):
        raise ValueError(
            "the predictor holds numbers that nothing can be predicted with; write it again with servingplan train"
        )
    try:
        predictor = _predictor(about, arrays)
        fits = _is_sound(predictor.shape, predictor.reach) and _fits(predictor)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError("the predictor is inconsistent; write it again with servingplan train") from error
    if not fits:
        raise ValueError("the predictor's arrays do not fit together; write it again with servingplan train")
    return predictor


def base_scale(base: Array) -> Array:
    """(dimensions,) what one step of a coordinate kept in one byte is."""
    if not len(base):
        return np.ones(base.shape[1], dtype=np.float32)
    return np.asarray(np.maximum(np.abs(base).max(axis=0) / 127.0, 1e-9), np.float32)


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    foreign = "this is no predictor: give a file that servingplan train wrote"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_UNPACKED_BYTES:
                message = f"the predictor unpacks to more than {_MOST_UNPACKED_BYTES // 2**20} MiB; train it on fewer prompts"
                raise _TooLargeError(message)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _TooLargeError:
        raise
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError, SyntaxError) as error:
        raise ValueError(foreign) from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(foreign) from error


class _TooLargeError(ValueError):
    pass


def _about(raw: NDArray[Any]) -> dict[str, Any]:
    try:
        about = json.loads(raw.tobytes())
    except ValueError as error:
        raise ValueError("this is no predictor: give a file that servingplan train wrote") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        message = f"the predictor has format {found!r} and this version reads {FORMAT}; train it again"
        raise ValueError(message)
    return about


def _predictor(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Predictor:
    plain = {name: array.astype(np.float32) for name, array in arrays.items()}
    models = tuple(about["models"])
    if not models or not all(isinstance(model, str) for model in models):
        raise ValueError(models)
    return Predictor(
        models=models,
        layout=str(about["layout"]),
        shape=Shape(**about["shape"]),
        projection=Projection(plain["centre"], plain["scale"], plain["weights"], plain["rotation"], plain["offset"]),
        mean=plain["mean"],
        linear=plain["linear"],
        base=plain[_BASE] * plain["base_scale"],
        dual=plain["dual"],
        trends=plain["trends"],
        spread=plain["spread"],
        targets=plain["targets"],
        reach=float(about["reach"]),
        calibration=plain["calibration"],
        length_ratio=plain["length_ratio"],
    )


def _fits(predictor: Predictor) -> bool:
    models, columns, base = len(predictor.models), predictor.mean.size, len(predictor.base)
    projection, shape = predictor.projection, predictor.shape
    features, dimensions = projection.rotation.shape
    expected = {
        "mean": (predictor.mean, (models * (2 if predictor.length_ratio.size else 1),)),
        "rotation": (projection.rotation, (features, dimensions)),
        "centre": (projection.centre, (features,)),
        "scale": (projection.scale, (features,)),
        "weights": (projection.weights, (VECTORS,)),
        "offset": (projection.offset, (dimensions,)),
        "base": (predictor.base, (base, dimensions)),
        "linear": (predictor.linear, (dimensions if shape.trend == "linear" else 0, columns)),
        "dual": (predictor.dual, (base if shape.trend == "kernel" else 0, columns)),
        "trends": (predictor.trends, (base if shape.mix else 0, models)),
        "spread": (predictor.spread, (models,)),
        "targets": (predictor.targets, (base if shape.neighbours else 0, columns)),
        "calibration": (predictor.calibration, (2, models)),
        "length_ratio": (predictor.length_ratio, (models if predictor.length_ratio.size else 0,)),
    }
    return (
        all(array.shape == wanted for array, wanted in expected.values())
        and features >= VECTORS * VECTOR
        and (base > 0 or not (shape.neighbours or shape.trend == "kernel"))
        and predictor.spread.min() >= _LEAST
        and predictor.length_ratio.min(initial=1.0) >= 0.0
    )


def _is_sound(shape: Shape, reach: float) -> bool:
    """Whether no number of the shape can make a prediction that is none."""
    at_least_0 = (shape.gamma, shape.ridge, shape.neighbours, shape.mix, shape.shrink, reach)
    return (
        shape.trend in _TRENDS
        and all(0.0 <= number < _MOST for number in at_least_0)
        and isinstance(shape.neighbours, int)
        and _LEAST <= shape.width < _MOST
    )


def _digest(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    hashed = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        hashed.update(f"{name} {array.dtype} {array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
