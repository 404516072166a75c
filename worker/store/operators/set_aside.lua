-- include: clock
-- Add unreadable keys to the operators' list.
-- ask: {records: [{key, why}]}
-- Answers their number.
local ask = cjson.decode(ARGV[1])
local KEPT_MS, MOST = 86400000, 1000
if redis.call('TYPE', 'unreadable').ok ~= 'zset' then redis.call('DEL', 'unreadable') end
for _, record in ipairs(ask.records) do
  redis.call('ZADD', 'unreadable', now_ms(), record[1] .. '\n' .. record[2])
end
redis.call('ZREMRANGEBYSCORE', 'unreadable', '-inf', now_ms() - KEPT_MS)
redis.call('ZREMRANGEBYRANK', 'unreadable', 0, -MOST - 1)
redis.call('PEXPIRE', 'unreadable', KEPT_MS)
return #ask.records
