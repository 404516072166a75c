-- include: clock, deliveries
-- One page of a webhook's deliveries, newest first.
-- Only reads.
-- ask: {account, id, offset, limit}
-- Answers {total, {delivery ID, {field, value, ...}}, ...}; nil if the account has no such webhook.
local ask = cjson.decode(ARGV[1])
if redis.call('HGET', 'webhook:' .. ask.id, 'account') ~= ask.account then return nil end
-- one second less than the retention of records, so that every listed delivery has one
local log, oldest = 'webhook:' .. ask.id .. ':log', now_ms() - DELIVERIES_KEPT_MS + 1000
local page = {redis.call('ZCOUNT', log, oldest, '+inf')}
for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', log, '+inf', oldest, 'LIMIT', ask.offset, ask.limit)) do
  -- checked so that a wrong list never shows another account's data
  if is_delivery_of(ask.id, id) then page[#page + 1] = {id, redis.call('HGETALL', 'delivery:' .. id)} end
end
return page
