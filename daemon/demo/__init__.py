"""Real parts on loopback, for `outboxd demo` and the tests: two Postgres clusters, PostgREST, a gateway.

Knows how to start and end them. Must not know the relay: it sees these parts only as a user's would be,
through a connection string, an address and a key.
"""
