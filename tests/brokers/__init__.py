"""Brokers and registries for the tests: real Apache Kafka and Apicurio Registry, without Docker."""
