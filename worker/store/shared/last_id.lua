-- include: clock, ids
-- Which ids of snapshots were given.

-- An id is at least the number of seconds since 2025, which is above every id given before a loss of Redis, for a cell
-- gives less than one a second. It may have been ahead of that by less than AHEAD for a while.
local AHEAD = 1000000
local EPOCH_S = 1735689600

local function seconds_now()
  return math.floor(now_ms() / 1000) - EPOCH_S
end

-- The highest id that was given, as far as Redis knows. One that is far above the clock was never given.
local function last_id()
  local last = redis.call('GET', 'snapshots:last_id')
  last = is_id(last) and tonumber(last) or 0
  return last <= seconds_now() + 2 * AHEAD and last or seconds_now() + AHEAD
end

-- Whether an id can have been given, also before a loss of Redis.
local function may_be_given(id)
  return is_id(id) and tonumber(id) <= math.max(last_id(), seconds_now() + AHEAD)
end

-- Give no id up to this one, which was found on a node.
local function learn_id(id)
  if tonumber(id) > last_id() then redis.call('SET', 'snapshots:last_id', id) end
end

-- A new id: no record has it, and none that was deleted had it, for disks may still carry that.
local function next_id()
  local id = math.max(last_id() + 1, seconds_now())
  while redis.call('EXISTS', string.format('snapshot:%.0f', id)) == 1 do id = id + 1 end
  local text = string.format('%.0f', id)
  redis.call('SET', 'snapshots:last_id', text)
  return text
end
