-- include: deliveries
-- Delete a webhook with all its deliveries.
-- ask: {account, id}
-- Answers 1, or 0 if the account has no such webhook.
local ask = cjson.decode(ARGV[1])
local key = 'webhook:' .. ask.id
if redis.call('HGET', key, 'account') ~= ask.account then return 0 end
for _, list in ipairs({key .. ':log', key .. ':due'}) do
  for _, delivery_id in ipairs(redis.call('ZRANGE', list, 0, -1)) do
    if is_delivery_of(ask.id, delivery_id) then
      redis.call('DEL', 'delivery:' .. delivery_id)
      redis.call('ZREM', waiting_of(ask.account), delivery_id)
    end
  end
end
redis.call('DEL', key, key .. ':log', key .. ':due', 'token:webhook:' .. ask.id)
redis.call('ZREM', 'account:' .. ask.account .. ':webhooks', ask.id)
redis.call('ZREM', 'webhooks:due', ask.id)
redis.call('SREM', 'webhooks:ready', ask.id)
redis.call('ZREM', 'account:' .. ask.account .. ':webhooks:ready', ask.id)
return 1
