"""Label sets that requests name: the compacted topic they are kept in."""
