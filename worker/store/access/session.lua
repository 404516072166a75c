-- include: clock, records, rate
-- Read an operator's session and count the call on its token.
-- ask: {key, by_person, idle_ms, calls, window_ms}
-- Answers {} if the session has ended, else {{field, value, ...} of the session, {field, value, ...} of the token,
-- allowed, left, ms until one more call is allowed}.
local ask = cjson.decode(ARGV[1])
local NOTED_MS = 60000 -- resolution of `seen_ms`, so that not every call costs a write to the disk
local session = look_up(ask.key)
if not session then return {} end
local token = look_up(session.token)
if not token then
  redis.call('DEL', ask.key)
  return {}
end
local now = now_ms()
if ask.by_person and now - session.seen_ms >= NOTED_MS then
  redis.call('HSET', ask.key, 'seen_ms', now)
  redis.call('PEXPIREAT', ask.key, math.min(tonumber(session.ends_ms), now + ask.idle_ms))
end
redis.set_repl(redis.REPL_NONE) -- the counters are neither replicated nor persisted
return {redis.call('HGETALL', ask.key), redis.call('HGETALL', session.token),
  take('calls:' .. token.id .. ':', ask.calls, ask.window_ms)}
