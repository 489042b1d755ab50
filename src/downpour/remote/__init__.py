"""Clients of servers in other processes, one for each consistency."""
