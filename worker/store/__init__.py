"""The Redis store: keys, records and Lua scripts, with a package for each side that uses it."""
