"""Which figures a simulated replica takes, and whether it says where they come from."""

import pytest

from servingplan.sim.coefficients import FITTED, profile

H100, L40S = "NVIDIA-H100-80GB-HBM3", "NVIDIA-L40S"


@pytest.mark.parametrize(
    ("model", "accelerator", "tensor_parallel", "source"),
    [
        ("Qwen/Qwen3-32B", H100, 2, "fit to measured"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", H100, 1, "fit to measured"),
        ("neuralmagic/Meta-Llama-3.1-70B-Instruct-FP8", H100, 4, "fit to measured"),
        ("meta-llama/Llama-3.1-8B", "NVIDIA-GeForce-RTX-4090", 1, "fit to a request log"),
        ("Qwen/Qwen2.5-14B-Instruct", L40S, 2, "MODELLED"),
        ("Qwen/Qwen2.5-14B-Instruct-AWQ", L40S, 1, "ROUGH"),
        ("mistralai/Mistral-7B-Instruct-v0.3", H100, 1, "ROUGH"),
        ("Qwen/Qwen3-32B", "Somebody-X1", 2, "Somebody-X1 is unknown"),
    ],
)
def test_a_profile_says_where_its_figures_come_from(model: str, accelerator: str, tensor_parallel: int, source: str) -> None:
    assert source in profile(model, accelerator, tensor_parallel).source


def test_the_measured_figures_are_used_as_they_are() -> None:
    assert profile("Qwen/Qwen3-32B", H100, 2).cost == pytest.approx((13.7e-3, 0.0, 57e-6, 60e-9))


def test_kv_room_is_what_the_weights_leave() -> None:
    two, four = (profile("Qwen/Qwen3-32B", H100, n).kv_tokens for n in (2, 4))
    assert 250_000 < two < 300_000
    assert four > 2 * two, "the weights are paid once"
    assert profile("Qwen/Qwen3-32B", L40S, 1).kv_tokens < 0
    assert profile("Qwen/Qwen3-32B", H100, 2, memory_share=0.5).kv_tokens < two


@pytest.mark.parametrize(("model", "kind", "tensor_parallel"), [key for key in FITTED if not key[0].endswith("fp8")])
def test_the_rough_rule_stays_within_a_factor_of_two_of_every_fit(model: str, kind: str, tensor_parallel: int) -> None:
    fitted = profile(model, kind, tensor_parallel).cost
    family, _, size = model.partition("-")
    rough = profile(f"{family}-x{size.rpartition('-')[2]}", kind, tensor_parallel).cost

    def step_s(tokens: int, context: int, cost: tuple[float, float, float, float]) -> float:
        alpha_s, floor_s, beta_s, gamma_s = cost
        return alpha_s + max(floor_s, beta_s * tokens) + gamma_s * context

    for tokens, context in ((1, 500), (32, 32 * 700), (1024, 20_000)):
        assert 0.4 < step_s(tokens, context, rough) / step_s(tokens, context, fitted) < 2.5
