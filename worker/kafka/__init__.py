"""Kafka, and nothing else of ours: this package is a leaf.

The way in is `consumer` (`assignment`, `offset_commits`, `ends`, `records`, `skips`, and for what cannot be read
`unreadable` and `batch_probe`). The way out is `publisher`, under two guarantees: `at_least_once`, and `transactional`
(`pending_offsets`, `lost_requests`, `fencing`), both over `producer`. `reader` reads outside any group. `topic_ids`
tells topics that were made again. `client_config` and `client_errors` hold what librdkafka is told, and what its error
codes mean. `embedded` is a broker for the demo and the tests.
"""
