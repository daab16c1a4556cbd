"""What happens to a record, a file a step."""
