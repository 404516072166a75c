-- include: records, states
-- Limits on what one account can store in Redis: see worker/store/bounds.py.

local function bound(name)
  local stored = number(redis.call('HGET', 'bounds', name))
  return stored and stored > 0 and stored or BOUNDS[name]
end

-- The share of `maxmemory` that is in use; 0 where Redis has no limit.
local function share_in_use()
  local about = redis.call('INFO', 'memory')
  local used = tonumber(string.match(about, 'used_memory:(%d+)'))
  local most = tonumber(string.match(about, 'maxmemory:(%d+)'))
  return most > 0 and used / most or 0
end
