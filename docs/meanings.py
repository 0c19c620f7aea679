"""What names mean that the code does not explain itself."""

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
