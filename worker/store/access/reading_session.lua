-- include: clock, records, rate, notes
-- Find the token of a session that Redis could not keep, and count the call on it.
-- Only reads and notes.
-- ask: {token: its id, calls, window_ms}
-- Answers {} where there is no such token, else {its key, {field, value, ...}, why Redis refused to count or '', and if
-- it counted: allowed, left, ms until one more call is allowed}.
local ask = cjson.decode(ARGV[1])
local key = redis.call('HGET', 'tokens', ask.token)
local token = key and look_up(key)
if not token then return {} end
now_ms()
redis.set_repl(redis.REPL_NONE) -- the counters are neither replicated nor persisted
return {key, redis.call('HGETALL', key), try(take, 'calls:' .. token.id .. ':', ask.calls, ask.window_ms)}
