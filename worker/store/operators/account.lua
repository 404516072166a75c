-- include: account_limits
-- Show the limits of an account.
-- Only reads.
-- ask: {account}
-- Answers {how many snapshots a server of the account may have, 1 if an operator has set it, servers of the account}.
local ask = cjson.decode(ARGV[1])
local is_set = redis.call('HEXISTS', 'account:' .. ask.account, 'snapshots_max')
return {snapshots_max(ask.account), is_set, redis.call('ZCARD', 'servers:account:' .. ask.account)}
