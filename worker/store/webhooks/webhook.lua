-- include: records, show
-- One webhook of an account.
-- Only reads.
-- ask: {id, account}
-- Answers the webhook (see `show_webhook`); nil if the account has none with this ID.
local ask = cjson.decode(ARGV[1])
return read_of(ask.account, 'webhook:' .. ask.id) and show_webhook(ask.id) or nil
