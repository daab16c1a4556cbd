"""A worker with everything but the model and Avro, for the tests of delivery."""
