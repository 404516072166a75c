-- Append entries to the list of those that wait for the audit log's keeper.
-- Also when full.
-- ask: {entries: [JSON], most: entries that may wait}
-- Answers 1, or 0 if the list accepts no more: it is full, or the key has another type.
local ask = cjson.decode(ARGV[1])
if redis.call('LLEN', 'audit:new') >= ask.most then return 0 end
return redis.call('RPUSH', 'audit:new', unpack(ask.entries)) > 0 and 1 or 0
