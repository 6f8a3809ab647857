"""Step-time coefficients, KV capacity and defaults per model, accelerator and tensor parallel size.

Measured entries are fits to public measurements of real servers; modelled entries are fits to a grid computed by
NVIDIA's aiconfigurator 0.12.0 (Apache-2.0), whose own error against measurements is 9-13 % on inter-token latency.
Each entry names its source. Only fitted figures are kept here.

A pair that is not listed is scaled from bytes and FLOPs (`_scaled`): that is rough. Between two measured models on one
accelerator the rule has been 30 % off on inter-token latency and 40 % on TTFT, and a mixture of experts counts as dense.

KV capacity follows vLLM's memory accounting: what is left of ``gpu_memory_utilization`` of the memory after the weights
and about 2 GB an accelerator for activations and graphs, over the bytes of one token's keys and values.
"""

import re
from dataclasses import dataclass

from servingplan.sim.engine import StepCost

_SILICON = "fit to measured closed-loop points of aiconfigurator 0.12.0's silicon sample (Apache-2.0)"
_LOG = "fit to a request log of vLLM 0.19 from LLMServingSim's examples (MIT)"
_SCALED = "ROUGH: scaled from bytes and FLOPs"
_MODELLED = "MODELLED: fit to aiconfigurator 0.12.0 estimates (Apache-2.0)"

_PRECISION = {2.0: "", 1.0: "-fp8", 0.5: "-int4"}
"""What a fitted model's name ends in, by bytes a weight."""

_GRAPHS_AND_ACTIVATIONS_BYTES = 2e9
_USABLE_MEMORY = 0.99


@dataclass(frozen=True, slots=True)
class Model:
    """What a forward pass of a model moves and computes.

    Attributes:
        parameters: number of weights (all of them dense).
        kv_bytes_per_token: keys and values of one token over all layers, 16 bits each.
        max_model_len: context length of the published configuration.
    """

    parameters: float
    kv_bytes_per_token: float
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Datasheet figures of one accelerator."""

    memory_bytes: float
    bandwidth_bytes_s: float
    flops: float


@dataclass(frozen=True, slots=True)
class Profile:
    """How one replica behaves.

    Attributes:
        cost: step-time coefficients.
        kv_tokens: tokens the KV cache holds; zero or less where the weights do not fit.
        max_model_len: longest prompt and output together.
        max_num_seqs, max_num_batched_tokens: what vLLM sets when not told.
        source: where the coefficients come from.
    """

    cost: StepCost
    kv_tokens: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    source: str


MODELS = {
    "qwen2.5-0.5b": Model(0.49e9, 12288, 32768),
    "qwen2.5-1.5b": Model(1.54e9, 28672, 32768),
    "qwen2.5-3b": Model(3.09e9, 36864, 32768),
    "qwen2.5-7b": Model(7.62e9, 57344, 32768),
    "qwen2.5-14b": Model(14.77e9, 196608, 32768),
    "qwen2.5-32b": Model(32.76e9, 262144, 32768),
    "qwen2.5-72b": Model(72.71e9, 327680, 32768),
    "qwen3-8b": Model(8.19e9, 147456, 40960),
    "qwen3-14b": Model(14.77e9, 163840, 40960),
    "qwen3-32b": Model(32.76e9, 262144, 40960),
    "llama-3.1-8b": Model(8.03e9, 131072, 131072),
    "llama-3.1-70b": Model(70.55e9, 327680, 131072),
    "llama-3.3-70b": Model(70.55e9, 327680, 131072),
}
"""By a part of the model's lower-case name without its organisation; the longest that fits counts."""

ACCELERATORS = {
    "H100": Accelerator(80e9, 3.35e12, 989e12),
    "H200": Accelerator(141e9, 4.8e12, 989e12),
    "B200": Accelerator(180e9, 8.0e12, 2250e12),
    "A100-PCIE-40GB": Accelerator(40e9, 1.555e12, 312e12),
    "A100-SXM4-40GB": Accelerator(40e9, 1.555e12, 312e12),
    "A100": Accelerator(80e9, 2.039e12, 312e12),
    "L40S": Accelerator(48e9, 0.864e12, 362e12),
    "L4": Accelerator(24e9, 0.3e12, 121e12),
    "A10": Accelerator(24e9, 0.6e12, 125e12),
    "RTX-4090": Accelerator(25.25e9, 1.008e12, 165e12),
    "RTX-PRO-6000": Accelerator(96e9, 1.792e12, 250e12),
}
"""By a part of the product label the GPU operator puts on nodes; the first match counts."""


def _ms_us_ns(alpha_ms: float, beta_us: float, gamma_ns: float, floor_ms: float = 0.0) -> StepCost:
    return StepCost(alpha_ms * 1e-3, floor_ms * 1e-3, beta_us * 1e-6, gamma_ns * 1e-9)


_MEASURED: dict[tuple[str, str, int], tuple[StepCost, str]] = {
    ("qwen3-32b", "H100", 2): (_ms_us_ns(13.7, 57, 60), _SILICON),
    ("qwen3-32b", "H100", 4): (_ms_us_ns(9.4, 34, 28), _SILICON),
    ("qwen3-32b", "H100", 8): (_ms_us_ns(7.6, 21, 19), _SILICON),
    ("llama-3.1-70b-fp8", "H100", 2): (_ms_us_ns(16.7, 69, 42), _SILICON),
    ("llama-3.1-70b-fp8", "H100", 4): (_ms_us_ns(11.0, 41, 37), _SILICON),
    ("llama-3.1-70b-fp8", "H100", 8): (_ms_us_ns(9.1, 26, 20), _SILICON),
    ("llama-3.1-8b", "H100", 1): (_ms_us_ns(6.4, 20.7, 41), _SILICON + ", TensorRT-LLM engine"),
    ("llama-3.1-8b", "H100", 2): (_ms_us_ns(4.4, 13.3, 22), _SILICON + ", TensorRT-LLM engine"),
    ("llama-3.1-8b", "RTX-PRO-6000", 1): (_ms_us_ns(12.8, 39.7, 74), _LOG),
    ("llama-3.1-8b", "RTX-4090", 1): (_ms_us_ns(22.3, 87, 0), _LOG + "; gamma not identified"),
    ("qwen3-32b", "RTX-PRO-6000", 2): (_ms_us_ns(6.0, 168, 227, floor_ms=21.6), _LOG),
}

# alpha ms, beta us, gamma ns. Median error of the fit on the grid's inter-token latencies: 2-13 %.
_MODELLED_MS_US_NS: dict[tuple[str, str], dict[int, tuple[float, float, float]]] = {
    ("llama-3.1-8b", "H100"): {4: (2.6, 7.7, 21)},
    ("llama-3.1-8b", "A100"): {1: (10.9, 52, 131), 2: (6.0, 36.5, 75), 4: (4.2, 19.5, 56)},
    ("llama-3.1-8b", "L40S"): {1: (21.8, 69, 132), 2: (11.2, 57, 147)},
    ("llama-3.1-70b", "H100"): {4: (13.7, 52, 118)},
    ("llama-3.1-70b", "A100"): {4: (25.2, 142, 276)},
    ("qwen2.5-7b", "H100"): {1: (5.3, 18.0, 39), 2: (3.4, 10.9, 23), 4: (2.3, 6.5, 17)},
    ("qwen2.5-7b", "A100"): {1: (9.3, 52, 101), 2: (5.7, 31.7, 60), 4: (3.6, 17.8, 44)},
    ("qwen2.5-7b", "L40S"): {1: (19.6, 57, 116), 2: (9.7, 49, 122)},
    ("qwen2.5-14b", "H100"): {1: (11.0, 37, 46), 2: (6.4, 21, 57), 4: (4.2, 15.5, 35)},
    ("qwen2.5-14b", "A100"): {1: (20.1, 97, 172), 2: (11.0, 54, 157), 4: (6.9, 34, 100)},
    ("qwen2.5-14b", "L40S"): {1: (39.4, 124, 285), 2: (20.2, 105, 270)},
    ("qwen2.5-32b", "H100"): {2: (12.7, 50, 70), 4: (7.6, 27, 61)},
    ("qwen2.5-32b", "A100"): {2: (23.0, 125, 236), 4: (12.9, 69, 175)},
    ("qwen2.5-32b", "L40S"): {2: (46.1, 210, 175)},
    ("qwen2.5-72b", "H100"): {4: (13.9, 53, 120)},
    ("qwen2.5-72b", "A100"): {4: (25.9, 145, 279)},
}

FITTED = {
    (model, kind, tensor_parallel): (_ms_us_ns(*figures), _MODELLED)
    for (model, kind), by_size in _MODELLED_MS_US_NS.items()
    for tensor_parallel, figures in by_size.items()
} | _MEASURED
"""Coefficients and source by model, accelerator and tensor parallel size."""


def profile(model: str, accelerator: str, tensor_parallel: int, memory_share: float = 0.9) -> Profile:
    """What a replica of `model` on `tensor_parallel` accelerators of a kind does.

    Args:
        model: as vLLM takes it, such as ``Qwen/Qwen3-32B``.
        accelerator: product label, such as ``NVIDIA-H100-80GB-HBM3``; an unknown one counts as an H100.
        tensor_parallel: accelerators a replica uses.
        memory_share: vLLM's ``--gpu-memory-utilization``.
    """
    name = model.rsplit("/", 1)[-1].lower()
    label = accelerator.upper().replace(" ", "-")
    kind = next((k for k in ACCELERATORS if k in label), None)
    known = next((m for m in sorted(MODELS, key=len, reverse=True) if m in name), None)
    shape = MODELS[known] if known else _guess(name)
    byte_width = _weight_bytes(name)
    fitted_name = f"{known}{_PRECISION[byte_width]}"
    hardware = ACCELERATORS[kind or "H100"]
    fitted = FITTED.get((fitted_name, kind or "", tensor_parallel))
    cost, source = fitted or (_scaled(shape, byte_width, hardware, tensor_parallel), f"{_SCALED} of {kind}")
    if kind is None:
        source = f"{_SCALED} of an H100, since {accelerator} is unknown"
    usable = memory_share * _USABLE_MEMORY * hardware.memory_bytes - _GRAPHS_AND_ACTIVATIONS_BYTES
    kv_bytes = tensor_parallel * usable - shape.parameters * byte_width
    # vLLM's own defaults for a server: generous from 70 GiB an accelerator on, A100 excepted.
    large = hardware.memory_bytes >= 70 * 2**30 and kind != "A100"
    return Profile(
        cost=cost,
        kv_tokens=int(kv_bytes // shape.kv_bytes_per_token),
        max_model_len=shape.max_model_len,
        max_num_seqs=1024 if large else 256,
        max_num_batched_tokens=8192 if large else 2048,
        source=source,
    )


def _weight_bytes(name: str) -> float:
    if re.search(r"awq|gptq|int4|w4a16|nvfp4|mxfp4", name):
        return 0.5
    return 1.0 if re.search(r"fp8|int8|w8a8", name) else 2.0


def _guess(name: str) -> Model:
    """A dense model from the size in its name, 7B where there is none; grouped-query attention as published models."""
    found = re.search(r"(\d+(?:\.\d+)?)b(?![a-z])", name)
    billions = float(found[1]) if found else 7.0
    return Model(billions * 1e9, 46_000 * billions**0.5, 32768)


def _scaled(shape: Model, byte_width: float, hardware: Accelerator, tensor_parallel: int) -> StepCost:
    """Three fifths of the datasheet's FLOPs, three quarters of its bandwidth, and a cost for every all-reduce."""
    bandwidth = 0.75 * hardware.bandwidth_bytes_s * tensor_parallel
    return StepCost(
        alpha_s=2e-3 + 0.6e-3 * (tensor_parallel - 1) ** 0.5,
        floor_s=shape.parameters * byte_width / bandwidth,
        beta_s=2 * shape.parameters / (0.6 * hardware.flops * tensor_parallel),
        gamma_s=shape.kv_bytes_per_token / bandwidth,
    )
