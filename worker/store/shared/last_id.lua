-- include: clock, ids
-- Allocation of snapshot IDs.

-- An ID is at least the number of seconds since 2025. That is above every ID from before a loss of Redis, because a
-- cell allocates fewer than one per second; temporarily, IDs may be ahead of it by less than AHEAD.
local AHEAD = 1000000
local EPOCH_S = 1735689600

local function seconds_now()
  return math.floor(now_ms() / 1000) - EPOCH_S
end

-- The highest allocated ID, as far as Redis knows. An ID far above the clock was never allocated.
local function last_id()
  local last = redis.call('GET', 'snapshots:last_id')
  last = is_id(last) and tonumber(last) or 0
  return last <= seconds_now() + 2 * AHEAD and last or seconds_now() + AHEAD
end

-- Whether an ID can have been allocated, possibly before a loss of Redis.
local function may_be_given(id)
  return is_id(id) and tonumber(id) <= math.max(last_id(), seconds_now() + AHEAD)
end

-- Do not allocate IDs up to this one, which was found on a node.
local function learn_id(id)
  if tonumber(id) > last_id() then redis.call('SET', 'snapshots:last_id', id) end
end

-- Allocate an ID that no existing or deleted record has, because disks may still have the tag of a deleted one.
local function next_id()
  local id, text = math.max(last_id() + 1, seconds_now()), nil
  repeat
    text, id = string.format('%d', id), id + 1
  until redis.call('EXISTS', 'snapshot:' .. text) == 0
  redis.call('SET', 'snapshots:last_id', text)
  return text
end
