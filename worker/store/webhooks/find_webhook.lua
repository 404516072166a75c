-- include: records, webhooks
-- One webhook of an account, as it is shown. ARGV: id, account. Answers nil where there is none, also for another account's.
local webhook = read('webhook:' .. ARGV[1])
if not webhook or webhook.account ~= ARGV[2] then return nil end
return show_webhook(ARGV[1])
