-- include: records, webhooks
-- One webhook of an account.
-- ask: {account, id}
-- Answers the webhook (see `show_webhook`); nil where the account has no such webhook.
local ask = cjson.decode(ARGV[1])
if not read_of(ask.account, 'webhook:' .. ask.id) then return nil end
return show_webhook(ask.id)
