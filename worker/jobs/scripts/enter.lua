-- Let a caller in who shows a token, and count the call. ARGV: key of the token or '', address, account that the call
-- names or '', calls, failed logins, window_ms. Answers {{field, value, ...} of the token, allowed, left, ms until there is one
-- more}; without a token the numbers are those of the address's failed logins.

-- Who only reads should not cost a write to the disk: what is counted here is not kept.
redis.set_repl(redis.REPL_NONE)

-- The generic cell rate algorithm: `most` at once, and one more each window_ms / most.
local function take(key, most, window_ms)
  local now, each = now_ms(), window_ms / most
  -- When all of them are there again. Never further than a window: also where the clock was set back.
  local full = math.min(math.max(tonumber(redis.call('GET', key)) or 0, now), now + window_ms)
  local allowed = full + each - window_ms <= now
  if allowed then
    full = full + each
    redis.call('SET', key, string.format('%.3f', full), 'PX', math.ceil(full - now))
  end
  local left = math.floor((window_ms - (full - now)) / each)
  return allowed and 1 or 0, left, math.ceil(math.max(0, full - now - window_ms + (left + 1) * each))
end

local token = ARGV[1] ~= '' and read(ARGV[1])
if not token then return {{}, take('calls:failed:' .. ARGV[2], ARGV[5], ARGV[6])} end
local account = token.account ~= '' and token.account or ARGV[3]
return {redis.call('HGETALL', ARGV[1]), take('calls:' .. token.id .. ':' .. account, ARGV[4], ARGV[6])}
