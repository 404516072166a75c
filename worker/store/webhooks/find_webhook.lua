-- include: records, webhooks
-- One webhook of an account.
-- Only reads.
-- ask: {account, id}
-- Answers the webhook (see `show_webhook`); nil where the account has no such webhook.
local ask = cjson.decode(ARGV[1])
local webhook = read('webhook:' .. ask.id)
if not webhook or webhook.account ~= ask.account then return nil end
return show_webhook(ask.id)
