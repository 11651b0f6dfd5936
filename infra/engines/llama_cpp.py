"""The embedded engine: llama.cpp's server as a library (xllamacpp), in a process of its own.

    python -m infra.engines.llama_cpp --model FILE.gguf --name NAME --port PORT [--slots 8] [--context 2048]

Serves an OpenAI-compatible API on loopback until it gets TERM. With `--draft` it decodes speculatively.
"""

import argparse
import signal
from pathlib import Path

from xllamacpp import CommonParams, Server, common_speculative_type

DRAFT_TYPES = {
    "dspark": common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK,
    "dflash": common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH,
    "eagle3": common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3,
    "mtp": common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP,
}


def parse_arguments() -> argparse.Namespace:
    """Return the settings of one engine."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.engines.llama_cpp", description="Serve a GGUF file on loopback."
    )
    parser.add_argument("--model", type=Path, required=True, help="GGUF file of the target")
    parser.add_argument("--name", required=True, help="name to serve it under")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=8, help="requests decoded together")
    parser.add_argument("--context", type=int, default=2048, help="tokens per request, prompt and answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draft", type=Path, help="GGUF file of a draft model")
    parser.add_argument("--draft-type", choices=sorted(DRAFT_TYPES), default="dspark")
    parser.add_argument("--draft-tokens", type=int, default=7, help="tokens proposed per round")
    parser.add_argument("--draft-p-min", type=float, default=0.0, help="a proposal ends before a token less likely")
    return parser.parse_args()


def parameters(arguments: argparse.Namespace) -> CommonParams:
    """Return the settings as llama.cpp knows them."""
    params = CommonParams()
    params.model.path = str(arguments.model)
    params.model_alias = {arguments.name}
    params.hostnames = ["127.0.0.1"]
    params.port = arguments.port
    params.n_parallel = arguments.slots
    params.n_ctx = arguments.slots * arguments.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # a thread that waits sleeps: other work shares the cores
    params.cache_ram_mib = 0  # no prompt cache in main memory beside the slots
    params.ui = False
    if arguments.draft is not None:
        params.speculative.types = [DRAFT_TYPES[arguments.draft_type]]
        params.speculative.draft.mparams.path = str(arguments.draft)
        params.speculative.draft.n_max = arguments.draft_tokens
        params.speculative.draft.p_min = arguments.draft_p_min
    return params


def main() -> None:
    """Serve until TERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # before the engine's threads start
    server = Server(parameters(parse_arguments()))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main()
