"""A server process: the tables of one shard, behind checks and Arrow Flight."""
