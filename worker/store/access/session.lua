-- include: clock, records, rate, notes
-- Read an operator's session and count the call for its token.
-- Only reads and notes.
-- ask: {key, by_person, idle_ms, calls, window_ms}
-- Answers {} if the session has ended, else {{field, value, ...} of the session, {field, value, ...} of the token,
-- why Redis refused to count or '', and if it counted: allowed, left, ms until one more call is allowed}.
local ask = cjson.decode(ARGV[1])
local NOTED_MS = 60000 -- resolution of `seen_ms`, which saves disk writes
local session = look_up(ask.key)
if not session then return {} end
local token = look_up(session.token)
local now = now_ms()
local over = now >= tonumber(session.ends_ms) or now - session.seen_ms >= ask.idle_ms
if over or not token then
  try(redis.call, 'DEL', ask.key)
  return {}
end
if ask.by_person and now - session.seen_ms >= NOTED_MS then
  try(redis.call, 'HSET', ask.key, 'seen_ms', now)
  -- an earlier version let the key expire when idle
  try(redis.call, 'PEXPIRE', ask.key, 2 * (session.ends_ms - now))
end
redis.set_repl(redis.REPL_NONE) -- the counters are neither replicated nor persisted
return {redis.call('HGETALL', ask.key), redis.call('HGETALL', session.token),
  try(take, 'calls:' .. token.id .. ':', ask.calls, ask.window_ms)}
