-- include: clock, records, rate, notes
-- Find the token of a read-only session, which Redis does not store, and count the call for it.
-- Only reads and notes.
-- ask: {token: its ID, calls, window_ms}
-- Answers {} if there is no such token, else {its key, {field, value, ...}, why Redis refused to count or '', and if
-- it counted: allowed, left, ms until one more call is allowed}.
local ask = cjson.decode(ARGV[1])
local key = redis.call('HGET', 'tokens', ask.token)
local token = key and look_up(key)
if not token then return {} end
now_ms()
redis.set_repl(redis.REPL_NONE) -- the counters are neither replicated nor persisted
return {key, redis.call('HGETALL', key), try(take, 'calls:' .. token.id .. ':', ask.calls, ask.window_ms)}
