"""The Redis store: keys, records and Lua scripts, with one package for each side that uses it."""
