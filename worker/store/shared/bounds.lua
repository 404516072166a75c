-- include: states
-- What one account may leave in Redis: see worker/store/bounds.py.

local function bound(name)
  return tonumber(redis.call('HGET', 'bounds', name) or BOUNDS[name])
end
