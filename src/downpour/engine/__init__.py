"""Runs in several processes: servers, workers, and the chief who watches over them."""
