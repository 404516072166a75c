-- include: clock, windows
-- The runs in windows of schedules that must start now, earliest first. Runs of a deleted schedule are removed.
-- ask: {skip, limit}
-- Answers {{schedule, server, due_ms, name of the schedule, start of its window in ms}, ...}.
local ask = cjson.decode(ARGV[1])
local due = {}
local found = redis.call('ZRANGEBYSCORE', RUNS, '-inf', now_ms(), 'WITHSCORES', 'LIMIT', ask.skip, ask.limit)
for i = 1, #found, 2 do
  local id, server = string.match(found[i], '^(%x+):(%d+)$')
  local key = 'schedule:' .. (id or '')
  if id and redis.call('EXISTS', key) == 1 then
    local name, starts_ms = unpack(redis.call('HMGET', key, 'name', 'window_start_ms'))
    due[#due + 1] = {id, server, found[i + 1], name or '', starts_ms or ''}
  else
    redis.call('ZREM', RUNS, found[i])
  end
end
return due
