"""`step3 serve`: a server for OpenAI's and Anthropic's clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from step3.cli.serve_options import (
    deployment_options,
    drafts,
    picture_limit,
    refuse_parallelism,
    separate_names,
)
from step3.errors import Step3Error

if TYPE_CHECKING:
    from step3.server.config import ServerConfig
    from step3.server.supervisor import Supervisor

_LIMITS = "Limits of requests"
_MEDIA = "Pictures by URL"
_ENGINE = "Engine"
_PARALLEL = "Parallelism of other servers (anything over 1 is refused)"
_MODEL = "Model"
_AFD = "Attention and FFN apart"

BUNDLED_NAME = "step3-nano"


def serve(
    model: str | None = typer.Argument(
        None, help="A checkpoint's folder or its name on the Hugging Face Hub; left out, the bundled model."
    ),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; 0.0.0.0 for every network."),
    port: int = typer.Option(8000, min=0, max=65535, help="0 takes any free port."),
    api_key: list[str] = typer.Option(
        [], envvar="STEP3_API_KEY", help="Key that clients must send; may be given several times."
    ),
    served_model_name: list[str] = typer.Option(
        [], help="What clients call the model; may be given several times. Left out: as it is given here."
    ),
    drain_seconds: float = typer.Option(60, min=1, help="Time that running requests have after SIGTERM."),
    model_option: str | None = typer.Option(
        None, "--model", "--model-path", help="The same as MODEL.", rich_help_panel=_MODEL
    ),
    revision: str | None = typer.Option(
        None, help="Version of a model from the Hub.", rich_help_panel=_MODEL
    ),
    tokenizer: str | None = typer.Option(
        None, "--tokenizer", "--tokenizer-path", help="Folder of another tokenizer.", rich_help_panel=_MODEL
    ),
    chat_template: str | None = typer.Option(
        None, help="File of another chat template (Jinja).", rich_help_panel=_MODEL
    ),
    trust_remote_code: bool = typer.Option(
        False, help="Taken and not needed: code of a checkpoint is never run.", rich_help_panel=_MODEL
    ),
    reasoning_parser: str = typer.Option(
        "step3", help="step3: what precedes </think> is reasoning_content.", rich_help_panel=_MODEL
    ),
    tool_call_parser: str = typer.Option(
        "step3", help="step3: the model's <steptml:invoke> blocks.", rich_help_panel=_MODEL
    ),
    enable_auto_tool_choice: bool = typer.Option(
        True, help="Taken; the model may always choose among a request's tools.", rich_help_panel=_MODEL
    ),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16.", rich_help_panel=_ENGINE),
    device: str = typer.Option("cpu", help="Where to compute, as torch names it.", rich_help_panel=_ENGINE),
    max_model_len: int | None = typer.Option(
        None,
        "--max-model-len",
        "--context-length",
        help="Prompt and answer in tokens.",
        rich_help_panel=_ENGINE,
    ),
    max_num_seqs: int | None = typer.Option(
        None, "--max-num-seqs", "--max-running-requests", help="Answers together.", rich_help_panel=_ENGINE
    ),
    max_num_batched_tokens: int | None = typer.Option(
        None,
        "--max-num-batched-tokens",
        "--chunked-prefill-size",
        help="Tokens of a step; longer prompts come in chunks.",
        rich_help_panel=_ENGINE,
    ),
    gpu_memory_utilization: float | None = typer.Option(
        None,
        "--gpu-memory-utilization",
        "--mem-fraction-static",
        help="Part of the device's memory to use.",
        rich_help_panel=_ENGINE,
    ),
    load: str = typer.Option(
        "packed",
        help="packed: weights are copied into the CPU kernels' order. mmap: they are used from their files.",
        rich_help_panel=_ENGINE,
    ),
    int8_activations: bool = typer.Option(
        False,
        "--int8-activations",
        help="Reads prompts faster on a CPU from block-fp8 weights, a little less exactly.",
        rich_help_panel=_ENGINE,
    ),
    batch_invariant: bool = typer.Option(
        True,
        help="Off: prompts are read faster on a CPU with AVX2, and depend on what is beside them.",
        rich_help_panel=_ENGINE,
    ),
    kv_cache_memory_bytes: int | None = typer.Option(
        None, help="Memory of the KV cache, instead of a part.", rich_help_panel=_ENGINE
    ),
    kv_cache_dtype: str = typer.Option("auto", help="auto, a dtype, or fp8.", rich_help_panel=_ENGINE),
    block_size: int | None = typer.Option(
        None, "--block-size", "--page-size", help="Tokens of a KV block.", rich_help_panel=_ENGINE
    ),
    enable_prefix_caching: bool = typer.Option(
        True, help="Keep the KV of finished requests for prompts that begin alike.", rich_help_panel=_ENGINE
    ),
    max_logprobs: int | None = typer.Option(None, help="Per token at most.", rich_help_panel=_ENGINE),
    seed: int | None = typer.Option(
        None, "--seed", "--random-seed", help="Of requests that bring none.", rich_help_panel=_ENGINE
    ),
    speculative_config: str | None = typer.Option(
        None,
        help='Drafts from the text so far, where that is faster: {"method": "ngram", '
        '"num_speculative_tokens": 4}.',
        rich_help_panel=_ENGINE,
    ),
    limit_mm_per_prompt: str | None = typer.Option(
        None, help='Pictures of one request: image=4 or {"image": 4}.', rich_help_panel=_LIMITS
    ),
    max_pixels: int | None = typer.Option(
        None, help="Largest width × height of a picture (40 million).", rich_help_panel=_LIMITS
    ),
    max_body_mib: int = typer.Option(
        64, min=1, max=512, help="Largest request, pictures included.", rich_help_panel=_LIMITS
    ),
    max_output_tokens: int | None = typer.Option(
        None, min=1, help="Longest answer that may be asked for.", rich_help_panel=_LIMITS
    ),
    max_n: int | None = typer.Option(
        None, min=1, help="Answers of one request (64), times its prompts.", rich_help_panel=_LIMITS
    ),
    max_waiting: int = typer.Option(
        256, min=0, help="Answers that may wait; more are told 429.", rich_help_panel=_LIMITS
    ),
    request_seconds: float = typer.Option(
        3600, min=0.1, help="Longest that an answer may take.", rich_help_panel=_LIMITS
    ),
    body_seconds: float = typer.Option(
        60, min=0.1, help="Longest that a request's body may take to arrive.", rich_help_panel=_LIMITS
    ),
    idle_seconds: float = typer.Option(
        30, min=0.1, help="Longest that a connection may be silent between requests.", rich_help_panel=_LIMITS
    ),
    write_seconds: float = typer.Option(
        60, min=0.1, help="Longest that a client may leave an answer unread.", rich_help_panel=_LIMITS
    ),
    allowed_origins: list[str] = typer.Option(
        [],
        help="Web pages from elsewhere that may ask (CORS); may be given several times.",
        rich_help_panel=_LIMITS,
    ),
    allowed_media_domains: list[str] = typer.Option(
        [],
        help="Host that pictures may be fetched from by https, *.example.org for all below; may be given "
        "several times. Left out, none are fetched.",
        rich_help_panel=_MEDIA,
    ),
    media_max_mib: int = typer.Option(
        20, min=1, max=512, help="Largest picture that is fetched.", rich_help_panel=_MEDIA
    ),
    media_seconds: float = typer.Option(
        10, min=0.1, help="Longest that fetching one may take.", rich_help_panel=_MEDIA
    ),
    media_max_redirects: int = typer.Option(
        3,
        min=0,
        max=20,
        help="Redirects that are followed, each checked as the first URL.",
        rich_help_panel=_MEDIA,
    ),
    attention_instances: int | None = typer.Option(
        None, min=1, help="Processes for attention, KV cache and sampling (1).", rich_help_panel=_AFD
    ),
    ffn_instances: int | None = typer.Option(
        None, min=0, help="Processes for FFNs; 0 computes them with attention.", rich_help_panel=_AFD
    ),
    ffn_parallel: str | None = typer.Option(
        None, help="How they share each FFN: ep, tp, or like ep2xtp2.", rich_help_panel=_AFD
    ),
    ffn_replicas: int | None = typer.Option(
        None, min=1, help="Instances that hold the same: one may die without a pause.", rich_help_panel=_AFD
    ),
    micro_batches: int | None = typer.Option(
        None, min=1, max=64, help="Batches in flight of each attention instance (3).", rich_help_panel=_AFD
    ),
    wire_activations: str | None = typer.Option(
        None, help="auto, float32, bfloat16 or fp8 to the FFNs.", rich_help_panel=_AFD
    ),
    wire_partials: str | None = typer.Option(
        None, help="auto, float32 or bfloat16 back.", rich_help_panel=_AFD
    ),
    instance_threads: int | None = typer.Option(
        None, min=1, help="Threads of each process.", rich_help_panel=_AFD
    ),
    bind_cores: bool = typer.Option(False, help="Give each process cores of its own.", rich_help_panel=_AFD),
    lease: float | None = typer.Option(
        None, help="Seconds of silence after which an instance counts as dead (1.5).", rich_help_panel=_AFD
    ),
    listen: str | None = typer.Option(
        None, help="HOST:PORT where instances of other hosts join.", rich_help_panel=_AFD
    ),
    advertise: str | None = typer.Option(
        None, help="Host under which they reach this one, if it is another.", rich_help_panel=_AFD
    ),
    local_attention: int | None = typer.Option(
        None,
        min=0,
        help="Of the attention instances, those started here (with --listen 0).",
        rich_help_panel=_AFD,
    ),
    local_ffn: int | None = typer.Option(
        None,
        min=0,
        help="Of the FFN instances, those started here (with --listen 0).",
        rich_help_panel=_AFD,
    ),
    cluster_secret: str | None = typer.Option(
        None, envvar="STEP3_CLUSTER_SECRET", help="What who joins must know.", rich_help_panel=_AFD
    ),
    cluster_tls_cert: str | None = typer.Option(
        None, help="This host's certificate, in PEM: encrypts what goes to other hosts.", rich_help_panel=_AFD
    ),
    cluster_tls_key: str | None = typer.Option(
        None, help="The certificate's private key.", rich_help_panel=_AFD
    ),
    cluster_tls_ca: str | None = typer.Option(
        None, help="The authority whose certificates who joins must have.", rich_help_panel=_AFD
    ),
    tensor_parallel_size: int = typer.Option(
        1, "--tensor-parallel-size", "-tp", "--tp", "--tp-size", rich_help_panel=_PARALLEL
    ),
    data_parallel_size: int = typer.Option(
        1, "--data-parallel-size", "-dp", "--dp", "--dp-size", rich_help_panel=_PARALLEL
    ),
    pipeline_parallel_size: int = typer.Option(
        1, "--pipeline-parallel-size", "-pp", "--pp", "--pp-size", rich_help_panel=_PARALLEL
    ),
    nnodes: int = typer.Option(1, rich_help_panel=_PARALLEL),
    node_rank: int = typer.Option(0, rich_help_panel=_PARALLEL),
    dist_init_addr: str | None = typer.Option(None, rich_help_panel=_PARALLEL),
) -> None:
    """Serve a model to OpenAI's and Anthropic's clients, which find it at /v1.

    Flags have vLLM's names, and SGLang's where those differ: commands for either work unchanged.

    \b
    step3 serve                                  the bundled model, on this machine only
    step3 serve ./step3-fp8 --port 9000 --max-model-len 8192
    STEP3_API_KEY=... step3 serve ./step3-fp8 --host 0.0.0.0 --served-model-name step3

    \b
    step3 serve ./step3-fp8 --attention-instances 3 --ffn-instances 2 --ffn-parallel ep --micro-batches 3
    STEP3_CLUSTER_SECRET=... step3 serve ./step3-fp8 --attention-instances 1 --ffn-instances 1 \\
         --listen 0.0.0.0:7000        and on any hosts, in any order, with the same secret:
         step3 attention ./step3-fp8 --join HOST:7000; step3 ffn ./step3-fp8 --join HOST:7000

    \b
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
         -d '{"messages": [{"role": "user", "content": "Hello"}]}'

    Pictures are sent as data:image/png;base64,..., or by URL from the hosts that --allowed-media-domains
    names. /docs describes all paths. Prometheus reads /metrics, load balancers /health. Ctrl-C or SIGTERM
    lets running requests finish; a second Ctrl-C does not.
    """
    refuse_parallelism(
        {
            "--tensor-parallel-size": tensor_parallel_size,
            "--data-parallel-size": data_parallel_size,
            "--pipeline-parallel-size": pipeline_parallel_size,
            "--nnodes": nnodes,
        },
        node_rank,
        dist_init_addr,
    )
    for flag, parser in (("--reasoning-parser", reasoning_parser), ("--tool-call-parser", tool_call_parser)):
        if parser != "step3":
            raise Step3Error(f"{flag} can only be step3, which fits the model, found {parser!r}")
    if not enable_auto_tool_choice:
        raise Step3Error("tool choice cannot be turned off here: leave the tools out of the requests")
    if model is not None and model_option is not None:
        raise Step3Error(f"the model is given twice, as {model} and as {model_option}: give it once")
    model = model or model_option
    given = {
        "model": model,
        "revision": revision,
        "tokenizer": tokenizer,
        "chat_template": chat_template,
        "dtype": dtype,
        "device": device,
        "load": load,
        "int8_activations": int8_activations,
        "batch_invariant": batch_invariant,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "gpu_memory_utilization": gpu_memory_utilization,
        "kv_cache_memory_bytes": kv_cache_memory_bytes,
        "kv_cache_dtype": kv_cache_dtype,
        "block_size": block_size,
        "enable_prefix_caching": enable_prefix_caching,
        "max_logprobs": max_logprobs,
        "seed": seed,
        "speculative_config": None if speculative_config is None else drafts(speculative_config),
        "limit_mm_per_prompt": None if limit_mm_per_prompt is None else picture_limit(limit_mm_per_prompt),
    }
    given.update(
        deployment_options(
            {
                "attention_instances": attention_instances,
                "ffn_instances": ffn_instances,
                "ffn_parallel": ffn_parallel,
                "ffn_replicas": ffn_replicas,
                "micro_batches": micro_batches,
                "activations": wire_activations,
                "partials": wire_partials,
                "threads": instance_threads,
                "bind_cores": bind_cores or None,
                "lease": lease,
                "listen": listen,
                "advertise": advertise,
                "local_attention": local_attention,
                "local_ffn": local_ffn,
                "secret": cluster_secret,
                "tls_cert": cluster_tls_cert,
                "tls_key": cluster_tls_key,
                "tls_ca": cluster_tls_ca,
            }
        )
    )
    optional = {"max_pixels": max_pixels, "max_output_tokens": max_output_tokens, "max_n": max_n}
    _run(
        host=host,
        port=port,
        api_keys=tuple(api_key),
        served_model_names=tuple(served_model_name) or (model or BUNDLED_NAME,),
        drain_seconds=drain_seconds,
        max_body_bytes=max_body_mib << 20,
        max_waiting=max_waiting,
        request_seconds=request_seconds,
        body_seconds=body_seconds,
        idle_seconds=idle_seconds,
        write_seconds=write_seconds,
        allowed_origins=tuple(allowed_origins),
        fetch_options={
            "hosts": separate_names(allowed_media_domains),
            "max_bytes": media_max_mib << 20,
            "seconds": media_seconds,
            "max_redirects": media_max_redirects,
        },
        engine={name: value for name, value in given.items() if value is not None},
        **{name: value for name, value in optional.items() if value is not None},
    )


def _run(fetch_options: dict[str, Any], **options: Any) -> None:
    import asyncio
    import logging

    try:
        from step3.server.config import ServerConfig
        from step3.server.pictures import FetchLimits
        from step3.server.run import run
    except ModuleNotFoundError as error:
        raise Step3Error(f"{error.name} is not installed: pip install 'step3[server]'") from None

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    console, config = (
        Console(stderr=True, highlight=False),
        ServerConfig(fetch=FetchLimits(**fetch_options), **options),
    )
    with console.status(f"Loading {config.served_model_names[0]} ...") as status:

        def tell(url: str, supervisor: Supervisor) -> None:
            status.stop()
            _show_banner(console, config, url, supervisor)

        asyncio.run(run(config, tell))
    console.print("Stopped.")


def _show_banner(console: Console, config: ServerConfig, url: str, supervisor: Supervisor) -> None:
    from rich.markup import escape

    info = supervisor.info
    names = ", ".join(config.served_model_names)
    console.print(f"[bold]Step3[/] serves [bold]{escape(names)}[/]: open [bold cyan]{url}[/] in a browser")
    console.print(f"  for OpenAI clients {url}/v1; what a deployment costs: {url}/planner")
    console.print(f"  {info['max_num_seqs']} answers of {info['max_model_len']:,} tokens on {info['device']}")
    console.print(f"  {info['memory']}")
    keys = "requests need an API key" if config.api_keys else "anybody who reaches it may ask"
    console.print(f"  {keys}; /docs, /health, /metrics; Ctrl-C stops")
    if not config.api_keys and config.host not in ("127.0.0.1", "localhost", "::1"):
        console.print("  [bold yellow]open to the network without a key:[/] set STEP3_API_KEY to ask for one")
