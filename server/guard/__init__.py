"""Middleware before every handler: access, request bodies, idempotency, problem documents."""
