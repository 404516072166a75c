-- include: records, show
-- Show a snapshot and its history.
-- Only reads.
-- ask: {id}
-- Answers {snapshot (see `show_snapshot`); {} once its record is gone, {entry as JSON, ...}}; nil if neither exists.
local ask = cjson.decode(ARGV[1])
local key = 'snapshot:' .. ask.id
local snapshot, flat = read(key)
local history = redis.call('LRANGE', key .. ':history', 0, -1)
if not snapshot and #history == 0 then return nil end
return {snapshot and show_snapshot(ask.id, snapshot, flat) or {}, history}
