"""Composes the rooms into a running server; the only room that knows them all."""
