-- include: records, rate
-- Let a caller in who shows a token, and count the call. ARGV: key of the token or '', address, account that the call
-- names or '', calls, failed logins, window_ms. Answers {{field, value, ...} of the token, allowed, left, ms until there is one
-- more}; without a token the numbers are those of the address's failed logins.

-- Who only reads should not cost a write to the disk: what is counted here is not kept.
redis.set_repl(redis.REPL_NONE)

local token = ARGV[1] ~= '' and read(ARGV[1])
if not token then return {{}, take('calls:failed:' .. ARGV[2], ARGV[5], ARGV[6])} end
local account = token.account ~= '' and token.account or ARGV[3]
return {redis.call('HGETALL', ARGV[1]), take('calls:' .. token.id .. ':' .. account, ARGV[4], ARGV[6])}
