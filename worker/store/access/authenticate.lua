-- include: clock, records, rate, notes
-- Check a caller's token and count the call.
-- Only reads and notes.
-- ask: {token: its key, '' for none, address, account: the account that the call names, '' for none, calls,
-- failed_logins, window_ms}
-- Answers {{field, value, ...} of the token, why Redis refused to count or '', and if it counted: allowed, left, ms
-- until one more call is allowed}. Without such a token the fields are empty and the numbers are those of failed logins
-- from the address.
local ask = cjson.decode(ARGV[1])

-- The counters are neither replicated nor persisted: a call that only reads must not cost a write to the disk.
now_ms()
redis.set_repl(redis.REPL_NONE)

local token = ask.token ~= '' and look_up(ask.token)
if not token then return {{}, try(take, 'calls:failed:' .. ask.address, ask.failed_logins, ask.window_ms)} end
local account = token.account ~= '' and token.account or ask.account
return {redis.call('HGETALL', ask.token), try(take, 'calls:' .. token.id .. ':' .. account, ask.calls, ask.window_ms)}
