-- include: records, states
-- Limits on what one account can store in Redis: see worker/store/bounds.py.

local function bound(name)
  local stored = number(redis.call('HGET', 'bounds', name))
  return stored and stored > 0 and stored or BOUNDS[name]
end
