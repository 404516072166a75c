-- include: show
-- An account's webhooks, newest first.
-- Only reads.
-- ask: {account}
-- Answers {webhook (see `show_webhook`), ...}.
local ask = cjson.decode(ARGV[1])
local shown = {}
for _, id in ipairs(redis.call('ZREVRANGE', 'account:' .. ask.account .. ':webhooks', 0, -1)) do
  -- a list that is wrong shows nobody's data to another
  if redis.call('HGET', 'webhook:' .. id, 'account') == ask.account then shown[#shown + 1] = show_webhook(id) end
end
return shown
