-- include: records, show
-- An account's webhooks, newest first.
-- Only reads.
-- ask: {account}
-- Answers {webhook (see `show_webhook`), ...}.
local ask = cjson.decode(ARGV[1])
local shown, list = {}, 'account:' .. ask.account .. ':webhooks'
for _, id in ipairs(redis.call('ZREVRANGE', list, 0, -1)) do
  shown[#shown + 1] = show_listed(list, 'webhook:', id, ask, show_webhook)
end
return shown
