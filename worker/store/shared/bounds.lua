-- include: clock, records, states
-- Limits on what one account can store in Redis: see worker/store/bounds.py.

local function bound(name)
  local stored = number(redis.call('HGET', 'bounds', name))
  return stored and stored > 0 and stored or BOUNDS[name]
end

-- A value in the answer of INFO. One pattern would be tried at each of its thousand characters.
local function figure(about, name)
  local _, ends = string.find(about, '\n' .. name .. ':', 1, true)
  return tonumber(string.match(about, '^%d+', ends + 1))
end

local ROOMY = 0.7 -- far below the shares at which anything is refused
local in_use

-- The share of `maxmemory` that is in use, as of the first call; 0 where Redis has no limit. If it was below ROOMY in
-- the last 200 ms, it counts as 0, because INFO takes as long as five other commands. From ROOMY on it is exact,
-- because Redis itself refuses no script that also runs when it is full.
local function share_in_use()
  if in_use then return in_use end
  if has_room() then
    in_use = 0
    return in_use
  end
  local about = redis.call('INFO', 'memory')
  local used, most = figure(about, 'used_memory'), figure(about, 'maxmemory')
  in_use = most > 0 and used / most or 0
  if in_use < ROOMY then note_room() end
  return in_use
end

-- A bound on history: lower while new snapshots are refused, so that jobs which end make room.
local function history_bound(name)
  local most = bound(name)
  return share_in_use() >= FULL_FROM.new and math.min(most, KEPT_WHEN_SHORT[name]) or most
end
