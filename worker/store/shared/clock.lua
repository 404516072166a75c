-- include: records
-- The time of the cell: Unix time by Redis's clock without the clock's steps. If the clock is set, the time continues
-- from its previous value until `chores/compare_clocks` brings the two together again.

local SILENT_MS = 10000 -- a live cell runs a script every few seconds, so a longer gap is a step or an outage
local NOTED_MS = 200 -- how often the value of Redis's clock is recorded
local moment, moment_text, leapt, room_ms

-- The time in milliseconds: constant within one script. A script whose writes are not persisted reads it
-- before it calls redis.set_repl.
local function now_ms()
  if moment then return moment end
  local time = redis.call('TIME')
  local shown = time[1] * 1000 + math.floor(time[2] / 1000)
  local last, ahead
  last, ahead, leapt, room_ms = unpack(redis.call('HMGET', 'clock', 'shown_ms', 'ahead_ms', 'leapt_ms', 'room_ms'))
  last = number(last)
  local passed = shown - (last or shown)
  ahead = number(ahead) or 0
  -- pcall: while Redis refuses writes, reads continue with its unadjusted clock
  if passed < 0 or passed > SILENT_MS then
    local kept = redis.pcall('HSET', 'clock', 'shown_ms', shown, 'ahead_ms', ahead - passed, 'step', '')
    if type(kept) ~= 'table' then ahead = ahead - passed end
  elseif passed >= NOTED_MS or not last then
    redis.set_repl(redis.REPL_NONE) -- does not need a write to the disk
    redis.pcall('HSET', 'clock', 'shown_ms', shown)
    redis.set_repl(redis.REPL_ALL)
  end
  moment = shown + ahead
  return moment
end

-- The same as text. Whole numbers are formatted with %d, which takes a tenth of the time of %.0f.
local function now_text()
  moment_text = moment_text or string.format('%d', now_ms())
  return moment_text
end

-- When the time last leapt over an outage; 0: never.
local function leapt_ms()
  now_ms()
  return number(leapt) or 0
end

-- Whether a script noted shortly before now that Redis has room. A note from before a step of the clock does not count.
local function has_room()
  local passed = now_ms() - (number(room_ms) or -math.huge)
  return passed >= 0 and passed < NOTED_MS
end

-- Record that Redis has room. pcall: while Redis refuses writes, it is looked up again.
local function note_room()
  redis.set_repl(redis.REPL_NONE) -- as above
  redis.pcall('HSET', 'clock', 'room_ms', now_text())
  redis.set_repl(redis.REPL_ALL)
end
