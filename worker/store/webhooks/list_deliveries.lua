-- include: clock, records, deliveries
-- One page of a webhook's deliveries, newest first. ARGV: account, id, offset, limit.
-- Answers {total, {delivery id, {field, value, ...}}, ...}, nil where there is no such webhook.
local hook = read('webhook:' .. ARGV[2])
if not hook or hook.account ~= ARGV[1] then return nil end
local log, oldest = 'webhook:' .. ARGV[2] .. ':log', now_ms() - DELIVERIES_KEPT_MS + 1000 -- before their records go
local page = {redis.call('ZCOUNT', log, oldest, '+inf')}
for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', log, '+inf', oldest, 'LIMIT', ARGV[3], ARGV[4])) do
  page[#page + 1] = {id, redis.call('HGETALL', 'delivery:' .. id)}
end
return page
