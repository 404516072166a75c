-- include: records, webhooks
-- An account's webhooks, newest first.
-- ask: {account}
-- Answers {webhook (see `show_webhook`), ...}.
local ask = cjson.decode(ARGV[1])
local shown = {}
for _, id in ipairs(redis.call('ZREVRANGE', 'account:' .. ask.account .. ':webhooks', 0, -1)) do
  shown[#shown + 1] = attempt('webhook:' .. id, show_webhook, id)
end
return shown
