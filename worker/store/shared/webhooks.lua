-- Webhook records.

-- {id, {field, value, ...}}: its secrets are kept elsewhere.
local function show_webhook(id)
  return {id, redis.call('HGETALL', 'webhook:' .. id)}
end
