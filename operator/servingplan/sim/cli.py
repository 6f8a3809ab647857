"""``servingplan simulate vllm``: vLLM's own flags, and a few that say what to simulate."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from servingplan.sim import coefficients
from servingplan.sim.engine import BLOCK_TOKENS, Limits, StepCost

logger = logging.getLogger(__name__)

DEFAULT_ACCELERATOR = "NVIDIA-H100-80GB-HBM3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the server's flags to `parser`; the environment gives the defaults of the simulator's own."""
    parser.add_argument("model_positional", metavar="model", nargs="?", help="model to look like, such as Qwen/Qwen3-32B")
    parser.add_argument("--model")
    parser.add_argument("--served-model-name", nargs="+", metavar="NAME", help="names to answer to; the first is shown")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--num-gpu-blocks-override", type=int, help="KV blocks, instead of what the memory holds")
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--shutdown-timeout", type=float, default=0.0, help="seconds running requests may go on")
    parser.add_argument("--disable-access-log-for-endpoints", help="accepted; there is no access log")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn output lengths")
    simulator = parser.add_argument_group("simulator", "each also by environment, such as SIM_COLD_START_S")
    settings: tuple[tuple[str, type, object, str], ...] = (
        ("accelerator", str, DEFAULT_ACCELERATOR, "product label of the accelerator"),
        ("cold-start-s", float, 0.0, "seconds until the port opens"),
        ("speed", float, 1.0, "2 runs the engine twice as fast"),
        ("output-tokens-mean", float, 200.0, "mean of drawn output lengths"),
        ("alpha-ms", float, None, "step time: constant"),
        ("floor-ms", float, None, "step time: weight read"),
        ("beta-us", float, None, "step time per token computed"),
        ("gamma-ns", float, None, "step time per context token"),
    )
    for name, kind, default, text in settings:
        variable = "SIM_" + name.upper().replace("-", "_")
        simulator.add_argument(f"--sim-{name}", type=kind, default=os.environ.get(variable, default), help=text)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; the exit status.

    numpy and numba stay out of this path: many simulated servers start at once on small machines.
    """
    from servingplan.sim.server import Settings, serve  # noqa: PLC0415 - `add_arguments` and --help do without

    model = args.model or args.model_positional
    if not model:
        logger.error("no model: give it as the first argument or by --model")
        return 2
    profile = coefficients.profile(model, args.sim_accelerator, args.tensor_parallel_size, args.gpu_memory_utilization)
    kv_blocks = args.num_gpu_blocks_override or profile.kv_tokens // BLOCK_TOKENS
    room = (kv_blocks - 1) * BLOCK_TOKENS
    max_model_len = args.max_model_len or min(profile.max_model_len, room)
    if room < max_model_len or room < BLOCK_TOKENS:
        logger.error(
            "%s on %d x %s has KV cache for %d tokens, less than the longest sequence of %d: "
            "lower --max-model-len, raise --gpu-memory-utilization or use more accelerators",
            model, args.tensor_parallel_size, args.sim_accelerator, max(0, room), max_model_len,
        )  # fmt: skip
        return 1
    settings = Settings(
        model=model,
        served_names=tuple(args.served_model_name or [model]),
        cost=_cost(args, profile.cost),
        limits=Limits(
            args.max_num_seqs or profile.max_num_seqs,
            args.max_num_batched_tokens or profile.max_num_batched_tokens,
            int(args.enable_prefix_caching),
        ),
        kv_blocks=kv_blocks,
        max_model_len=max_model_len,
        memory_share=args.gpu_memory_utilization,
        host=args.host,
        port=args.port,
        cold_start_s=args.sim_cold_start_s,
        shutdown_timeout_s=args.shutdown_timeout,
        output_tokens_mean=args.sim_output_tokens_mean,
        seed=args.seed,
    )
    logger.info("%s on %d x %s: %s", model, args.tensor_parallel_size, args.sim_accelerator, profile.source)
    asyncio.run(serve(settings))
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the simulated vLLM with vLLM's arguments (``serve`` in front is allowed); the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser("servingplan simulate vllm", description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    words = list(argv)
    if words[:1] == ["serve"]:
        words = words[1:]
    args, unknown = parser.parse_known_args([_hyphenated(word) for word in words])
    if not (args.model or args.model_positional) and len(unknown) == 1 and not unknown[0].startswith("-"):
        args.model = unknown.pop()
    if unknown:
        logger.warning("not simulated, ignored: %s", " ".join(unknown))
    return run(args)


def _hyphenated(word: str) -> str:
    """The flag with hyphens; vLLM takes ``--max_num_seqs`` too."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else word


def _cost(args: argparse.Namespace, fitted: StepCost) -> StepCost:
    given = (
        (args.sim_alpha_ms, 1e-3, fitted.alpha_s),
        (args.sim_floor_ms, 1e-3, fitted.floor_s),
        (args.sim_beta_us, 1e-6, fitted.beta_s),
        (args.sim_gamma_ns, 1e-9, fitted.gamma_s),
    )
    return StepCost(*((own if value is None else value * unit) / args.sim_speed for value, unit, own in given))
