-- include: records
-- Forget a webhook and all that it was to send. ARGV: account, id. Answers 1, or 0 where there is none.
local key = 'webhook:' .. ARGV[2]
local hook = read(key)
if not hook or hook.account ~= ARGV[1] then return 0 end
for _, list in ipairs({key .. ':log', key .. ':due'}) do
  for _, delivery_id in ipairs(redis.call('ZRANGE', list, 0, -1)) do redis.call('DEL', 'delivery:' .. delivery_id) end
end
redis.call('DEL', key, key .. ':log', key .. ':due', 'token:webhook:' .. ARGV[2])
redis.call('ZREM', 'account:' .. ARGV[1] .. ':webhooks', ARGV[2])
redis.call('ZREM', 'webhooks:due', ARGV[2])
return 1
