"""A load generator for OpenAI servers: TTFT, TPOT and throughput at given concurrencies and rates."""
