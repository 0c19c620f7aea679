"""What the words mean to a person; their names, types and defaults come from the code (see ``generated``)."""

LOAD = {
    "model": "the model; without it `--ollama-model`, else the server's only one",
    "endpoint": "which API is measured",
    "stream": "whether the response comes token by token; without it there is no `ttft`",
    "concurrency": "a closed loop: so many clients, each sends its next request when the last one is done",
    "rate": "an open loop: so many requests a second, whether or not the server keeps up",
    "arrival": "how an open loop spaces its requests",
    "stages": "over time: `[{'concurrency': 8, 'ramp': '30s'}, {'concurrency': 8, 'for': '5m'}]`, or with `rate`",
    "requests": "stop after so many requests (default: 20, or 5 for each client)",
    "duration": "stop after this time instead; requests in flight then finish or count as late",
    "drain": "how long requests in flight may take after a `duration`",
    "warmup": "requests before the clock starts, shown and never counted (default: one for each client)",
    "think_time": "pause of a client between two requests, or the two bounds of one that is drawn",
    "prompt": "your own prompt, for every request",
    "prompts": "your own prompts, in turn; or a mapping of prompts to weights",
    "dataset": "a file of JSON lines with your own prompts or chats, and weights if wanted",
    "turns": "questions of one chat; each client keeps its chat, the model's answers among the messages",
    "images": "image files; each request carries the next of them",
    "prompt_words": "words of a synthetic prompt",
    "prefix": "`unique`: every prompt begins differently, so that no cache knows it; `warm`: prompts as they are",
    "raw": "send the prompt past the model's template (default: for synthetic prompts of `generate`)",
    "num_predict": "tokens of a response, at most",
    "num_ctx": "context length; without it the server uses its own default, and nothing is sent",
    "temperature": "sampling temperature; without it the model's default applies",
    "seed": "seed of the model's sampling, of the prompts and of the arrivals; without it nothing is sent, and prompts "
    "and arrivals use seed 1",
    "think": "whether a thinking model thinks, or how hard; without it the model's default applies: thinking models "
    "think, except on raw prompts",
    "keep_alive": "how long the model stays loaded after a request",
    "options": "further options of Ollama, such as `{'num_thread': 4}`",
    "cold": "unload the model before the load, so that the first request loads it",
    "balance": "how requests are dealt out to several servers",
    "timeout": "how long a request may take in all; or its parts by name",
    "retries": "how often a request that met 502, 503 or 504 is sent again; the first attempt is kept and counted",
    "reuse_connections": "whether a client keeps its connection; without it every request pays for a new one",
    "limits": "absolute limits as a mapping, `{'ttft.p95': '<= 300ms'}`",
    "max_regression": "how much worse than history is accepted: `'10%'`, or `{'tps': '5%', 'ttft.p95': '25%'}`",
}

JUDGING_TAKES = {"limits": "mapping", "max_regression": "`'5%'` or mapping"}

TAKES = {
    "think_time": "seconds or `'300ms'`, or a pair of them",
    "timeout": "seconds or `'300ms'`, or a mapping",
    "dataset": "a path",
    "images": "a path or a list of paths",
    "balance": "`round_robin`, `random`, `least_in_flight`",
    "stages": "a list of mappings",
    "keep_alive": "seconds or `'10m'`; -1 for ever",
}
"""What a word takes where the schema of contract files cannot say it."""

EXAMPLES = {"think_time": 1, "prompt": "x", "prompts": ["x"], "timeout": 1}
"""Values of words whose field has another name, to learn which field that is."""

DEFAULTS = {
    "model": "-",
    "stages": "-",
    "dataset": "-",
    "images": "-",
    "prompt": "-",
    "prompts": "-",
    "rate": "-",
    "duration": "-",
    "options": "-",
    "think_time": "`0`",
}

MARKERS = {
    "ollama_sweep": "One load at every level. `concurrency` or `rate`, `num_ctx`, `prompt_words`, `num_predict` and "
    "`model` take lists; several lists make a product. A limit holds at every level, one on what the whole system "
    "makes (`throughput`, `qps`, `goodput`) at the best level. All words of `ollama_load`, and:",
    "ollama_max_concurrency": "The largest concurrency that is borne: doubling, then bisection. All words of "
    "`ollama_load` but `concurrency`, `rate` and `arrival`, and:",
    "ollama_cold_start": "The first answer after an unload. All words of `ollama_load` that make sense for one request "
    "at a time; limits of `ollama_load` hold for the warm requests. And:",
    "ollama_ab": "Two sides measured in turn, in blocks A B B A, loaded anew for each turn. Words of `ollama_load` "
    "beside the sides hold for both; `requests` is how many a side and block, 8 unless clients need more. And:",
}

EXPERIMENTS = {
    "ollama_sweep": {
        "single": "measure a row with one request at a time beside the levels (default: True where no level is that)",
        "stop_success_rate": "stop climbing below this share of successes (default: 0.9)",
        "stop_latency": "stop climbing above this P50 latency (default: 300 s)",
        "min_knee": "the knee must be at this level or above",
        "min_speedup": "the best level must bring this many times the throughput of one request at a time",
    },
    "ollama_max_concurrency": {
        "start": "the first level that is tried (default: 1)",
        "maximum": "the last one (default: 64)",
        "success_rate": "the least share of successes (default: 0.95)",
        "max_latency": "the most that P95 latency may be",
        "max_ttft": "the most that P95 TTFT may be",
        "repeats": "how many runs a probe may take that is too short to tell (default: 3)",
        "min_concurrency": "the least that must be borne",
    },
    "ollama_cold_start": {
        "repeats": "how often to start cold (default: 3)",
        "load_timeout": "how long a load may take (default: 30 minutes)",
        "max_load_time": "limit on the median `load_time`",
        "max_cold_ttft": "limit on the median TTFT of the request that loads the model",
        "max_cold_latency": "limit on its median latency",
        "max_warm_ttft": "limit on the median TTFT of the requests after it",
        "max_warm_latency": "limit on their median latency",
        "max_ratio": "limit on cold TTFT over warm TTFT",
    },
    "ollama_ab": {
        "baseline": "words of the one side, `url` among them (default: `--ollama-baseline-url`)",
        "candidate": "words of the other side",
        "max_regression": "how much slower the candidate may be (default: 3 % of tps, 12 % of ttft)",
        "max_error_rate": "share of requests that may fail (default: 0)",
    },
}

REPORTS = {
    "json": "every sample and verdict; its schema is published",
    "html": "one page that needs no network (extra `html`)",
    "markdown": "for pull requests, at most 60 kB",
    "openmetrics": "for Prometheus, and GitLab's metrics report",
    "csv": "a row for each sample",
    "benchstat": "the text format of Go benchmarks, which benchstat reads",
    "bencher": "Bencher Metric Format",
    "github-bigger": "`customBiggerIsBetter` of github-action-benchmark",
    "github-smaller": "`customSmallerIsBetter` of github-action-benchmark",
}

OUTCOMES = {
    "ok": "a final object with `done: true` and no error object; nothing else is a success",
    "refused": "the connection could not be made",
    "connect_timeout": "the connection was not made in time",
    "first_token_timeout": "no first token in time; queueing and a cold load count",
    "idle_timeout": "nothing came for too long in the middle of a response",
    "total_timeout": "the whole request took too long",
    "cut_off": "the connection broke before the response ended",
    "truncated": "the response ended properly, but without `done: true`",
    "malformed": "not HTTP, not NDJSON, a line over 8 MiB, or counters that are no numbers",
    "http_error": "a status of 400 or more; 503 is `busy`",
    "busy": "status 503: the server's queue is full",
    "server_error": "an error object after a status of 200",
    "late": "still unfinished when the drain after the deadline ended",
    "client_error": "an exception of this client; it counts as a failed request",
    "cancelled": "the load was stopped by Ctrl-C or SIGTERM",
}

VERDICTS = {
    "ok": "every limit is met, and history shows no change beyond the margin",
    "faster": "better than history",
    "new": "no history yet",
    "unsure": "the data cannot tell; the reason says what would settle it",
    "incomparable": "there is a history, but not one that may be compared",
    "regressed": "worse than history, beyond the margin and beyond chance",
    "broken": "an absolute limit is not met",
    "invalid": "the measurement cannot be trusted; the reason names the problem",
    "aborted": "the load was stopped before its end",
}

REQUIREMENTS = {
    "gpu_offload": "share of the model in GPU memory: `'100%'`, `'>= 80%'`, `'0%'`",
    "context_length": "context length the server gives the model: `8192`, `'>= 8192'`",
    "version": "version of Ollama: `'>= 0.30'`, `'>= 0.30, < 0.33'`",
    "quantization": "quantisation, or a list of which one will do: `'Q4_K_M'`",
    "family": "model family",
    "parameter_size": "size in parameters: `'3.2B'`",
    "digest": "digest of the model, or its beginning",
    "server_env": "declared settings of the server: `{OLLAMA_NUM_PARALLEL = '4'}`",
}

GENERATIONS = {
    "up to 0.9": "old runners: `eval_duration` leaves sampling out",
    "0.10-0.29": "`eval_duration` leaves sampling out",
    "0.30.0": "`prompt_eval_count` leaves cached tokens out",
    "0.30.1-0.33.2": "`prompt_eval_count` is the whole prompt",
    "from 0.33.3": "`prompt_eval_cached_count` says how many tokens were cached",
}
