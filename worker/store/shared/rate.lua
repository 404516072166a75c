-- include: clock, records
-- Rate limits.

-- The generic cell rate algorithm: `most` calls at once, and one more every window_ms / most. units: as how many calls
-- this one counts, or nil: as one. Returns allowed, left, ms until one more call is allowed.
local function take(key, most, window_ms, units)
  local now, each = now_ms(), window_ms / most
  local full = math.max(number(redis.call('GET', key)) or 0, now) -- when the full burst is available again
  if full > now + window_ms then full = now end -- the clock went back
  local counts = each * (units or 1)
  local allowed = full + counts - window_ms <= now
  if allowed then
    full = full + counts
    redis.call('SET', key, string.format('%.3f', full), 'PX', string.format('%d', math.ceil(full - now)))
  end
  local left = math.floor((window_ms - (full - now)) / each)
  return allowed and 1 or 0, left, math.ceil(math.max(0, full - now - window_ms + (left + 1) * each))
end
