"""Federated training: clients train on data of their own, and servers average what they learned."""
