-- include: webhooks
-- A customer's webhooks, newest first. ARGV: account. Answers {webhook, ...}, as they are shown.
local shown = {}
for _, id in ipairs(redis.call('ZREVRANGE', 'account:' .. ARGV[1] .. ':webhooks', 0, -1)) do
  shown[#shown + 1] = show_webhook(id)
end
return shown
