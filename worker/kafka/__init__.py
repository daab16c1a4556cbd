"""Kafka, and nothing else of ours: this package is a leaf.

The way in is `consumer` (`assignment`, `offset_commits`, `records`). The way out is `publisher`, under two guarantees:
`at_least_once`, and `transactional` (`pending_offsets`, `fencing`), both over `producer`. `reader` reads outside any
group; `topic_ids` tells topics that were made again. `client_config` and `client_errors` hold what librdkafka is told,
and what its error codes mean. `embedded` is a broker for the demo and the tests.
"""
