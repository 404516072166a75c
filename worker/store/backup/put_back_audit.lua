-- Write entries of a backup to an empty audit log. The head is written last, so that an interrupted call
-- can be repeated.
-- ask: {entries: [{id, fields: {field, value, ...}}], head: {field, value, ...} or false}
-- Answers {1, number of entries that were written}, or {0, 0} if a keeper has started another log.
local ask = cjson.decode(ARGV[1])
if redis.call('HGET', 'audit:head', 'seq') then return {0, 0} end
local newest = redis.call('XREVRANGE', 'audit', '+', '-', 'COUNT', 1)[1]
local function place(id)
  local ms, counted = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(counted)
end

local last_ms, last_counted = place(newest and newest[1] or '0-0')
local written = 0
for _, entry in ipairs(ask.entries) do
  local ms, counted = place(entry.id)
  if ms > last_ms or (ms == last_ms and counted > last_counted) then
    redis.call('XADD', 'audit', entry.id, unpack(entry.fields))
    written = written + 1
  end
end
if ask.head then redis.call('HSET', 'audit:head', unpack(ask.head)) end
return {1, written}
