-- include: clock, records, rate
-- Look at an operator's session, and count the call on its token. ARGV: key of the session, 1 if a person did it, idle_ms,
-- calls, window_ms. Answers {} where there is none any more, else {{field, value, ...} of the session, {field, value, ...} of
-- the token, allowed, left, ms until there is one more}.
local NOTED_MS = 60000 -- so late the session may hear that it is in use: not every look costs a write to the disk
local session = read(ARGV[1])
if not session then return {} end
if redis.call('EXISTS', session.token) == 0 then
  redis.call('DEL', ARGV[1])
  return {}
end
local now = now_ms()
if ARGV[2] == '1' and now - session.seen_ms >= NOTED_MS then
  redis.call('HSET', ARGV[1], 'seen_ms', now)
  redis.call('PEXPIREAT', ARGV[1], math.min(tonumber(session.ends_ms), now + ARGV[3]))
end
redis.set_repl(redis.REPL_NONE) -- what is counted is not kept
local token = read(session.token)
return {redis.call('HGETALL', ARGV[1]), redis.call('HGETALL', session.token), take('calls:' .. token.id .. ':', ARGV[4], ARGV[5])}
